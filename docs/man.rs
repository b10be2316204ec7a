//! Writes the man pages and the shell completions into a folder: `cargo run --example man -- target/man`.
//!
//! Both are made from the definitions in `src/cli/arguments.rs`, so that help, page and completion
//! cannot say different things (`tests/man.rs` checks that no option is missing).

use blockferry::cli::Arguments;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};

/// What scripts need and `--help` has no room for.
const EXIT_STATUS: &str = r#".SH "EXIT STATUS"
.TP
0
Done; also when nothing had changed.
.TP
1
A failure without a number of its own.
.TP
2
Wrong usage or configuration.
.TP
3
Some transfers of a job failed; the others are committed.
.TP
4
Transient: the network, or a peer that is busy or was stopped. Trying again may help.
.TP
5
Locked: another run is active; the message names its process.
.TP
6
An operator has to decide: the replica was promoted or has another history.
.TP
7
Differences were found by \fBverify\fR or \fBmanifest check\fR.
.TP
8
Refused by a guard, a permission, an identity or a version.
.TP
9
The source's snapshot could not be made, overflowed or was lost.
.TP
10
The replica or its journal: I/O error or no space.
.TP
128+N
Stopped by signal N. The first SIGINT or SIGTERM stops at a point to go on from, the second at once. In the history, and
where \fBabort\fR stopped it, 130.
"#;

const FILES: &str = r#".SH FILES
.TP
\fI/var/lib/blockferry\fR
What is remembered of each pair when root runs; \fI$XDG_STATE_HOME/blockferry\fR otherwise.
"#;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| Error::other("usage: man FOLDER"))?;
    std::fs::create_dir_all(&folder)?;
    for (name, page) in pages()? {
        std::fs::write(folder.join(name), page)?;
    }
    completions(&folder)
}

/// The definitions with what every command inherits.
pub fn definitions() -> Command {
    // `help COMMAND` is on no page: it is for who has no pages.
    let mut command = Arguments::command().disable_help_subcommand(true).mut_subcommands(|command| command.disable_help_subcommand(true));
    command.build();
    command
}

/// File name and text of every page: one for the program, one for each command that people type.
pub fn pages() -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    add_pages(&definitions(), "blockferry", &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, name: &str, pages: &mut Vec<(String, String)>) -> Result<()> {
    let names: Vec<&str> = name.split(' ').collect();
    let title = names.join("-");
    // clap wants names that live as long as the program; this one ends with the last page.
    let lasting: &'static str = title.clone().leak();
    let page = Man::new(command.clone().name(lasting).bin_name(name.to_owned())).title(title.clone()).section("1");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8(text).map_err(Error::other)?;
    pages.push((format!("{title}.1"), text + EXIT_STATUS + FILES));
    let typed = |command: &&Command| !command.is_hide_set();
    command.get_subcommands().filter(typed).try_for_each(|command| add_pages(command, &format!("{name} {}", command.get_name()), pages))
}

/// Completions of the usual shells, into the same folder.
pub fn completions(folder: &Path) -> Result<()> {
    [Shell::Bash, Shell::Zsh, Shell::Fish]
        .into_iter()
        .try_for_each(|shell| clap_complete::generate_to(shell, &mut Arguments::command(), "blockferry", folder).map(|_| ()))
}
