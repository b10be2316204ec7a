//! The log: what is told to whoever looks after this host, a line of standard error each. One place for all of it,
//! so that every line begins alike, says under the journal how much it matters, and cannot be forged by a peer.
//!
//! Data goes to standard output and is not the log's business; neither is what became of each run, which is kept in
//! the history and, where asked for, in the change log.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much a line matters; the number is syslog's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 3,
    /// Something is not as it should be, and the work goes on.
    Warning = 4,
    /// What happened, told once for each thing that happens.
    Info = 6,
    /// What was decided on the way: told with `--verbose`.
    Debug = 7,
}

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Tells what was decided on the way, too.
pub fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Something failed.
pub fn error(text: impl AsRef<str>) {
    tell(Level::Error, text.as_ref());
}

/// Something is not as it should be.
pub fn warning(text: impl AsRef<str>) {
    tell(Level::Warning, text.as_ref());
}

/// Something happened.
pub fn info(text: impl AsRef<str>) {
    tell(Level::Info, text.as_ref());
}

/// Something was decided. The text is made only where somebody wants it.
pub fn debug<T: AsRef<str>>(text: impl FnOnce() -> T) {
    if VERBOSE.load(Ordering::Relaxed) {
        tell(Level::Debug, text().as_ref());
    }
}

/// A line of the log. Where nobody reads standard error any more, the work goes on.
pub fn tell(level: Level, text: &str) {
    // One write for each entry, so that the lines of several threads do not mix.
    let _ = std::io::stderr().write_all(lines(level, text, under_journal()).as_bytes());
}

/// Whether standard error is the journal's own stream. A shell that was started by a service has the variable as
/// well, so that the stream is asked who it is, as systemd.exec(5) says.
fn under_journal() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| {
        let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
        let own = std::io::stderr().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
        own.is_ok_and(|own| named == format!("{}:{}", own.dev(), own.ino()))
    })
}

/// An entry as it is written. The journal knows the program already, and takes the level from the front of each line.
fn lines(level: Level, text: &str, journal: bool) -> String {
    let front = if journal { format!("<{}>", level as u8) } else { "blockferry: ".to_owned() };
    // What goes on in a second line is set in: no text from outside can begin an entry of its own.
    let further = if journal { format!("{front}  ") } else { "  ".to_owned() };
    let mut all = String::with_capacity(front.len() + text.len() + 1);
    for (at, line) in text.trim_end().split('\n').enumerate() {
        all.push_str(if at == 0 { &front } else { &further });
        for letter in line.chars() {
            // Names that a peer chose must not move the cursor of a terminal.
            if letter.is_control() && letter != '\t' {
                let _ = write!(all, "{}", letter.escape_default());
            } else {
                all.push(letter)
            }
        }
        all.push('\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gets_the_level_and_everybody_else_the_program() {
        assert_eq!(lines(Level::Warning, "the pool is nearly full", true), "<4>the pool is nearly full\n");
        assert_eq!(lines(Level::Warning, "the pool is nearly full", false), "blockferry: the pool is nearly full\n");
    }

    #[test]
    fn a_text_from_outside_begins_no_line_of_its_own() {
        assert_eq!(lines(Level::Info, "a\nblockferry: all is well\n", false), "blockferry: a\n  blockferry: all is well\n");
        assert_eq!(lines(Level::Error, "a\n<7>b", true), "<3>a\n<3>  <7>b\n");
        assert_eq!(lines(Level::Info, "red \u{1b}[31m\rx", false), "blockferry: red \\u{1b}[31m\\rx\n");
    }
}
