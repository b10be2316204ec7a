//! The logical volume that is to be replicated, found by path or by name.

use crate::error::{Error, Kind, Result, Within};
use crate::lvm::command::{Lvm2, Tools};
use crate::lvm::report::{LV_COLUMNS, Lv, VG_COLUMNS, Vg, logical_volumes, volume_groups};
use nix::sys::stat::{major, minor};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// A logical volume of this host.
#[derive(Clone)]
pub struct Volume {
    pub(super) lv: Lv,
    pub(super) tools: Arc<dyn Tools>,
}

impl Volume {
    /// The volume behind a path (`/dev/vg/lv`, `/dev/mapper/…`, `/dev/disk/by-id/…`, any link) or a
    /// name `vg/lv`. `None`: it is something else, and lvm2 may not even be installed.
    pub fn find(name: &str) -> Result<Option<Volume>> {
        Volume::find_with(Arc::new(Lvm2), name)
    }

    pub(super) fn find_with(tools: Arc<dyn Tools>, name: &str) -> Result<Option<Volume>> {
        let select = match fs::metadata(name) {
            Ok(meta) if meta.file_type().is_block_device() => match lvm_device(meta.rdev()) {
                Some((major, minor)) => format!("lv_kernel_major={major} && lv_kernel_minor={minor}"),
                None => return Ok(None),
            },
            Ok(_) => return Ok(None),
            Err(_) => match vg_and_lv(name) {
                Some((vg, lv)) => format!("vg_name=\"{vg}\" && lv_name=\"{lv}\""),
                None => return Ok(None),
            },
        };
        let Some(lv) = rows(&*tools, &select).within(|| format!("look for the logical volume {name}"))?.pop() else { return Ok(None) };
        if lv.path.is_empty() {
            return Err(Error::new(
                Kind::Usage,
                format!("{} is a {} and has no content of its own: name one of its volumes", lv.label(), lv.segtype),
            ));
        }
        Ok(Some(Volume { lv, tools }))
    }

    /// `vg/lv`.
    pub fn label(&self) -> String {
        self.lv.label()
    }

    /// The name of its volume group.
    pub fn vg(&self) -> &str {
        &self.lv.vg
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        Path::new(&self.lv.path)
    }

    /// Its LVM UUID, which outlives renames.
    pub fn uuid(&self) -> &str {
        &self.lv.uuid
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.lv.bytes
    }

    /// A thin volume: its snapshots need no room of their own.
    pub fn is_thin(&self) -> bool {
        self.lv.is_thin()
    }

    /// Somebody had it open when we looked: mounted, or used by a virtual machine, for example.
    pub fn in_use(&self) -> bool {
        self.lv.open
    }

    /// Its volume group as it is now.
    pub(super) fn group(&self) -> Result<Vg> {
        let name = &self.lv.vg;
        let text = self.tools.lvm(&["vgs", "-qq", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", VG_COLUMNS, name])?;
        volume_groups(&text)?.pop().ok_or_else(|| Error::new(Kind::Snapshot, format!("volume group {name} has vanished")))
    }

    /// Its thin pool as it is now.
    pub(super) fn pool(&self) -> Result<Lv> {
        let (vg, name) = (&self.lv.vg, &self.lv.pool);
        row(&*self.tools, vg, name)?.ok_or_else(|| Error::new(Kind::Snapshot, format!("thin pool {vg}/{name} has vanished")))
    }
}

/// The volumes that a selection matches, those without a device included.
pub(super) fn rows(tools: &dyn Tools, select: &str) -> Result<Vec<Lv>> {
    logical_volumes(&tools.lvm(&["lvs", "-qq", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", LV_COLUMNS, "-S", select])?)
}

pub(super) fn row(tools: &dyn Tools, vg: &str, name: &str) -> Result<Option<Lv>> {
    Ok(rows(tools, &format!("vg_name=\"{vg}\" && lv_name=\"{name}\""))?.pop())
}

/// Device number of an LV that is meant to be used. Hidden layers have a suffix behind their UUIDs.
fn lvm_device(device: u64) -> Option<(u64, u64)> {
    let (major, minor) = (major(device), minor(device));
    let uuid = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid")).ok()?;
    let uuids = uuid.trim().strip_prefix("LVM-")?;
    (uuids.len() == 64).then_some((major, minor))
}

/// `vg/lv` or `/dev/vg/lv` taken apart, when both could be names of lvm2.
fn vg_and_lv(name: &str) -> Option<(&str, &str)> {
    let (vg, lv) = name.strip_prefix("/dev/").unwrap_or(name).split_once('/')?;
    let may_be_name = |text: &str| {
        !text.is_empty() && !text.starts_with(['-', '.']) && text.chars().all(|c| c.is_ascii_alphanumeric() || "+_.-".contains(c))
    };
    (may_be_name(vg) && may_be_name(lv)).then_some((vg, lv))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::fake::{Fake, Row};

    #[test]
    fn files_and_other_devices_are_no_volumes_and_need_no_lvm2() {
        let nothing_is_asked = Fake::new(0, &[]);
        for name in ["/etc/passwd", "/dev/null", "/no/such/file", "image.raw", "./a/b/c"] {
            assert!(Volume::find_with(nothing_is_asked.clone(), name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn a_volume_is_found_by_name_and_by_the_path_it_would_have() {
        let fake = Fake::new(0, &[Row::new("db"), Row::new("log")]);
        for name in ["vg/db", "/dev/vg/db"] {
            let volume = Volume::find_with(fake.clone(), name).unwrap().unwrap();
            assert_eq!((volume.label().as_str(), volume.path()), ("vg/db", Path::new("/dev/vg/db")));
        }
        assert!(Volume::find_with(fake, "vg/other").unwrap().is_none());
    }

    #[test]
    fn a_thin_pool_is_no_volume() {
        struct Captured;
        impl Tools for Captured {
            fn need_device_mapper(&self) -> Result<()> {
                Ok(())
            }

            fn lvm(&self, _: &[&str]) -> Result<String> {
                let lines =
                    include_str!("captured/lvs.json").lines().filter(|line| !line.contains("lv_uuid") || line.contains("thin-pool"));
                Ok(lines.collect::<Vec<_>>().join("\n").replace("},\n", "}\n"))
            }
        }
        let error = Volume::find_with(Arc::new(Captured), "vg/pool").map(drop).unwrap_err();
        assert!(error.chain().starts_with("vg/pool is a thin-pool"), "{}", error.chain());
    }

    #[test]
    fn names_that_lvm2_would_not_take_are_not_asked_for() {
        for name in ["vg", "/vg/lv", "vg/lv/x", "vg/", "/dev/disk/by-id/x", "vg/-lv", "vg/l\"v", "../x"] {
            assert_eq!(vg_and_lv(name), None, "{name}");
        }
        assert_eq!(vg_and_lv("/dev/vg0/db-data.1"), Some(("vg0", "db-data.1")));
    }
}
