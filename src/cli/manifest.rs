//! `blockferry manifest show|check FILE`: for people and tests.

use super::arguments::{ManifestAction, ManifestOptions};
use super::output::Output;
use crate::digest::{Digest, Hasher, Secret};
use crate::error::{Error, Kind, Result};
use crate::format::manifest::{About, PAGE_UNKNOWN, PAGE_ZERO};
use crate::state::manifest::{Damage, Manifest};
use crate::state::{Files, HostFiles, ReplicaRecord, SourceRecord};
use indicatif::HumanBytes;
use serde_json::json;
use std::path::Path;

/// Shows or checks a manifest file.
pub fn run(options: &ManifestOptions, output: &Output) -> Result<()> {
    match &options.action {
        ManifestAction::Show { file } => show(file, output),
        ManifestAction::Check { file } => check(file, output),
    }
}

fn open(file: &Path, secret: &Secret) -> Result<Manifest> {
    let foreign = || Error::new(Kind::Usage, format!("{} is no manifest of blockferry, or its header is damaged", file.display()));
    let name = file.file_name().and_then(|name| name.to_str()).ok_or_else(foreign)?;
    let files = HostFiles::new(file.parent().unwrap_or(Path::new(".")));
    let content = files.open(name)?.ok_or_else(|| Error::new(Kind::Usage, format!("{} does not exist", file.display())))?;
    let mut block = [0; crate::format::manifest::HEADER_BYTES];
    content.read_at(&mut block, 0)?;
    let about = About::decode(&block).map_err(|_| foreign())?;
    Manifest::open(&files, name, &Hasher::new(about.algorithm, secret), Damage::Refuse)?.ok_or_else(foreign)
}

fn show(file: &Path, output: &Output) -> Result<()> {
    // What is shown needs no secret: the table is read, not proven.
    let mut manifest = open(file, &[0; 192])?;
    let (about, layout) = (*manifest.about(), manifest.layout());
    let (mut zero, mut unknown, mut stored) = (0, 0, 0);
    for page in 0..layout.pages {
        match manifest.page_digest(page)? {
            PAGE_ZERO => zero += 1,
            PAGE_UNKNOWN => unknown += 1,
            Digest(_) => stored += 1,
        }
    }
    output.line(|| {
        json!({
            "type": "manifest", "relationship": about.relationship, "epoch": about.epoch, "generation": about.generation,
            "root": about.root.to_string(), "sealed": about.sealed, "algorithm": about.algorithm,
            "volume_bytes": about.geometry.volume_bytes(), "extent_bytes": about.geometry.extent_bytes(),
            "extents": about.geometry.extents(), "pages": layout.pages, "zero_pages": zero, "unknown_pages": unknown, "stored_pages": stored,
        })
    });
    output.text(format!("relationship {}", about.relationship));
    output.text(format!("epoch        {}", about.epoch));
    output.text(format!("generation   {} ({})", about.generation, if about.sealed { "sealed" } else { "not sealed" }));
    output.text(format!("root         {}", about.root));
    output.text(format!("volume       {} ({} bytes)", HumanBytes(about.geometry.volume_bytes()), about.geometry.volume_bytes()));
    output.text(format!(
        "extents      {} of {}, {:?} digests",
        about.geometry.extents(),
        HumanBytes(about.geometry.extent_bytes() as u64),
        about.algorithm
    ));
    output.text(format!("pages        {} ({stored} stored, {zero} all zero, {unknown} unknown)", layout.pages));
    Ok(())
}

fn check(file: &Path, output: &Output) -> Result<()> {
    let files = HostFiles::new(file.parent().unwrap_or(Path::new(".")));
    let secret = match (SourceRecord::load(&files), ReplicaRecord::load(&files)) {
        (Ok(Some(record)), _) => record.secret,
        (_, Ok(Some(record))) => record.secret,
        _ => {
            return Err(Error::new(
                Kind::Usage,
                format!("no record lies beside {}: it has the secret that its digests are made with", file.display()),
            ));
        }
    };
    let mut manifest = open(file, &secret)?;
    manifest.check().map_err(|error| error.with_kind(Kind::Differs))?;
    output.line(|| json!({"type": "summary", "command": "manifest check", "root": manifest.about().root.to_string(), "sound": true}));
    output.text(format!("{}: every page and the root are as they were written", file.display()));
    Ok(())
}
