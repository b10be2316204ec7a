//! The words of `--help` and of `config example` are promises to whoever wrote them into a script or a page: a change of
//! them is seen here. `BLOCKFERRY_BLESS=1 cargo test --test help` writes them anew, for a change that is meant.

use blockferry::cli::Arguments;
use clap::{Command, CommandFactory};
use std::path::Path;
use std::process::Command as Process;

/// The golden text, or this one written as such.
fn golden(name: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLOCKFERRY_BLESS").is_some() {
        std::fs::write(&path, now).expect("the golden text is written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}; BLOCKFERRY_BLESS=1 makes it", path.display()));
    for (number, (now, golden)) in now.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, golden, "{name}:{}", number + 1);
    }
    assert_eq!(now.lines().count(), golden.lines().count(), "{name} has lines more or less");
}

/// The help of a command and of all below it, as a terminal of 100 columns shows it.
fn help(command: &mut Command, name: &str, all: &mut String) {
    all.push_str(&format!("# {name} --help\n\n{}\n", command.render_long_help()));
    for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set()) {
        help(below, &format!("{name} {}", below.get_name().to_owned()), all);
    }
}

#[test]
fn every_command_explains_itself_in_the_words_that_were_agreed() {
    let mut command = Arguments::command().term_width(100);
    command.build();
    let mut all = String::new();
    help(&mut command, "blockferry", &mut all);
    golden("help.txt", &all.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn the_examples_are_those_of_the_documentation_and_mean_what_they_did() {
    let folder = tempfile::tempdir().expect("a folder");
    for (option, page) in [(None, "agent.toml"), (Some("--receiver"), "receiver.toml")] {
        let said = |words: &[&str]| {
            let mut process = Process::new(env!("CARGO_BIN_EXE_blockferry"));
            let ended = process.arg("config").args(words).args(option).output().expect("run blockferry");
            assert!(ended.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ended.stderr));
            String::from_utf8(ended.stdout).expect("text")
        };
        let example = said(&["example"]);
        let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(page);
        assert_eq!(example, std::fs::read_to_string(documented).expect("the example"), "{page}");
        let file = folder.path().join(page);
        std::fs::write(&file, &example).expect("a configuration");
        let file = file.to_str().expect("a name");
        assert_eq!(said(&["check", "--config", file]), "", "{page} is valid");
        golden(&format!("{page}.shown"), &said(&["show", "--config", file]));
    }
}
