//! Help = man page = completion: every command and option that can be typed is described in each.

#[path = "../docs/man.rs"]
#[allow(dead_code)]
mod man;

use clap::Command;
use std::os::unix::fs::PermissionsExt;

/// What roff makes of a text: its minus signs and blanks are written otherwise.
fn plain(roff: &str) -> String {
    let text =
        roff.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\*(Aq", "'").replace("\\'", "'");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn visit(command: &Command, name: &str, look: &mut dyn FnMut(&Command, &str)) {
    look(command, name);
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        visit(inner, &format!("{name}-{}", inner.get_name()), look);
    }
}

#[test]
fn every_option_and_its_help_is_in_the_page_of_its_command() {
    let pages = man::pages().unwrap();
    let mut seen = 0;
    visit(&man::definitions(), "blockferry", &mut |command, name| {
        let (_, page) = pages.iter().find(|(file, _)| *file == format!("{name}.1")).unwrap_or_else(|| panic!("no page {name}.1"));
        let page = plain(page);
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set() && argument.get_id() != "help") {
            let typed = argument
                .get_long()
                .map(|long| format!("--{long}"))
                .or_else(|| argument.get_value_names().map(|names| names[0].to_string()));
            let typed = typed.unwrap_or_else(|| panic!("{name}: an argument without a name"));
            assert!(page.contains(&typed), "{name}.1 does not name {typed}");
            let help = argument.get_help().unwrap_or_else(|| panic!("{name}: {typed} has no help")).to_string();
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(page.contains(&help), "{name}.1 does not say of {typed}: {help}\n{page}");
            seen += 1;
        }
        assert!(page.contains("EXIT STATUS") && page.contains(&plain(&command.get_about().unwrap().to_string())));
    });
    assert!(seen > 40, "only {seen} options were looked at");
    assert!(!pages.iter().any(|(file, _)| file.contains("sender")), "what is run by the other side alone has no page");
}

#[test]
fn every_exit_code_is_explained_in_each_page_and_in_the_readme() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let pages = man::pages().unwrap();
    for code in 1..=10 {
        assert_eq!(readme.matches(&format!("| exit {code} |")).count(), 1, "README.md and exit {code}");
        assert!(
            pages.iter().all(|(file, page)| !file.ends_with(".1") || page.contains(&format!(".TP\n{code}\n"))),
            "a page and exit {code}"
        );
    }
}

#[test]
fn every_command_is_completed_in_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    man::completions(folder.path()).unwrap();
    for file in ["blockferry.bash", "_blockferry", "blockferry.fish"] {
        let script = std::fs::read_to_string(folder.path().join(file)).unwrap();
        for word in ["clone", "verify", "status", "resync", "manifest", "dry-run", "rsh", "state-dir"] {
            assert!(script.contains(word), "{file} does not complete {word}");
        }
    }
}

/// The Makefile's own lines, in a folder where what they take is there already: nothing is built.
#[test]
fn what_is_installed_is_where_man_and_the_shells_look_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (made, destination) = (folder.path().join("target/man"), folder.path().join("a root"));
    std::fs::create_dir_all(&made).unwrap();
    std::fs::create_dir_all(folder.path().join("target/release")).unwrap();
    std::fs::write(folder.path().join("target/release/blockferry"), "the program").unwrap();
    let pages = man::pages().unwrap();
    pages.iter().for_each(|(file, page)| std::fs::write(made.join(file), page).unwrap());
    man::completions(&made).unwrap();
    let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
    std::os::unix::fs::symlink(packaging, folder.path().join("packaging")).unwrap();
    let makefile = concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile");
    let ended = std::process::Command::new("make")
        .current_dir(folder.path())
        .args(["-f", makefile, "install-files", "PREFIX=/usr"])
        .arg(format!("DESTDIR={}", destination.display()))
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let installed = |file: &str| {
        let path = destination.join("usr").join(file);
        std::fs::metadata(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display())).permissions().mode() & 0o777
    };
    assert_eq!(installed("bin/blockferry"), 0o755);
    assert!(destination.join("usr/local/lib/systemd/system/blockferry-agent.service").exists());
    for (page, _) in &pages {
        assert_eq!(installed(&format!("share/man/man1/{page}")), 0o644);
    }
    for file in ["bash-completion/completions/blockferry", "zsh/site-functions/_blockferry", "fish/vendor_completions.d/blockferry.fish"] {
        assert_eq!(installed(&format!("share/{file}")), 0o644);
    }
}
