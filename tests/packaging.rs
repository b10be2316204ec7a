//! What `make install` puts into a system is what systemd understands.

use std::path::{Path, PathBuf};
use std::process::Command;

fn units() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let mut units: Vec<PathBuf> = std::fs::read_dir(folder).expect("the units").flatten().map(|entry| entry.path()).collect();
    units.sort();
    units
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn systemd_understands_every_unit() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        assert!(std::env::var_os("CI").is_none(), "CI has to have systemd-analyze (package systemd)");
        return eprintln!("skipped: there is no systemd-analyze (package systemd)");
    };
    assert!(version.status.success());
    let folder = tempfile::tempdir().expect("a folder");
    let mut asked = Vec::new();
    for unit in units() {
        let text = std::fs::read_to_string(&unit).expect("a unit");
        // It is looked for on this machine, where it may not be installed.
        let text = text.replace("=blockferry ", &format!("={} ", env!("CARGO_BIN_EXE_blockferry")));
        std::fs::write(folder.path().join(name(&unit)), text).expect("a copy");
        asked.push(folder.path().join(name(&unit).replace('@', "@db")));
        if name(&unit).contains('@') {
            std::os::unix::fs::symlink(folder.path().join(name(&unit)), asked.last().expect("a unit")).expect("an instance");
        }
    }
    assert!(asked.len() >= 5);
    let verify =
        Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).args(&asked).output().expect("it runs");
    let said = String::from_utf8_lossy(&verify.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("blockferry")).collect();
    assert!(verify.status.success() && ours.is_empty(), "{said}");
}

/// A word of a unit that the program does not know shows only when the service is started.
#[test]
fn what_the_units_start_is_what_the_program_knows() {
    let mut seen = 0;
    for unit in units() {
        let text = std::fs::read_to_string(&unit).expect("a unit");
        for line in text.lines().filter_map(|line| line.strip_prefix("ExecStart=blockferry ")) {
            let arguments: Vec<String> = line.split(' ').map(|word| word.replace("%i", "db")).collect();
            let missing = ["--config", "/nonexistent/agent.toml", "--state-dir", "/nonexistent/state"];
            let output = Command::new(env!("CARGO_BIN_EXE_blockferry")).args(&arguments).args(missing).output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{line}: {said}");
            assert!(said.contains("/nonexistent/agent.toml") && !said.contains("Usage:"), "{line}: {said}");
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
}
