//! Help = man page = completion: every command and option that can be typed is described in each.

#[path = "../docs/man.rs"]
#[allow(dead_code)]
mod man;

use clap::Command;

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
