//! Words: help, errors of usage, JSON lines, and what the messages look like to a person or a script.

#[path = "rig/ferry.rs"]
mod ferry;

use ferry::{Ended, Ferry, change_blocks, noise};
use snapbox::{assert_data_eq, str};
use std::fs::File;
use std::process::{Command, Stdio};

/// What was said, with this test's folder called by one name.
fn said(ferry: &Ferry, text: &str) -> String {
    text.replace(&ferry.name(""), "/t/")
}

#[test]
fn help_names_every_command_and_its_options() {
    let ferry = Ferry::new();
    let ended = Ended::of(Command::new(ferry::PROGRAM).arg("--help").env("COLUMNS", "100").output().unwrap());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    for word in ["clone ", "verify ", "status ", "resync ", "manifest ", "receiver ", "--state-dir <DIR>", "--json", "--io <IO>", "--quiet"]
    {
        assert!(ended.stdout.contains(word), "{word} is not in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("sender"), "what only programs run is not for people");
    for (command, words) in [
        (
            "clone",
            &[
                "<SRC>",
                "<DST>",
                "--overwrite",
                "--resync",
                "--dry-run",
                "--compress <HOW>",
                "--hash <NAME>",
                "--extent-size <SIZE>",
                "--rsh <COMMAND>",
            ][..],
        ),
        ("verify", &["--repair", "--rsh <COMMAND>", "--remote-program <COMMAND>"]),
        ("manifest", &["show", "check"]),
        ("receiver", &["--stdio"]),
    ] {
        let help = ferry.run(&[command, "--help"]);
        assert_eq!(help.code, Some(0));
        words.iter().for_each(|word| assert!(help.stdout.contains(word), "{command} --help lacks {word}"));
    }
    assert_eq!(ferry.run(&["--version"]).stdout, format!("blockferry {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_cannot_be_understood_exits_2_and_touches_nothing() {
    let ferry = Ferry::new();
    for (arguments, word) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["clone"], "<SRC>"),
        (&["clone", "a"], "<DST>"),
        (&["clone", "a", "b", "c"], "unexpected argument 'c'"),
        (&["clone", "a", "b", "--frob"], "unexpected argument '--frob'"),
        (&["clone", "a", "b", "--extent-size", "5K"], "not a power of two from 4 KiB to 4 MiB"),
        (&["clone", "a", "b", "--extent-size", "8M"], "not a power of two from 4 KiB to 4 MiB"),
        (&["clone", "a", "b", "--extent-size", "4X"], "4X\" is no size"),
        (&["clone", "a", "b", "--compress", "20"], "takes auto, none or a zstd level from -7 to 19"),
        (&["clone", "a", "b", "--hash", "md5"], "possible values: xxh3, blake3"),
        (&["clone", "a", "b", "--io", "fast"], "possible values: auto, uring, blocking"),
        (&["clone", "", "b"], "is empty"),
        (&["clone", "host:", "b"], "has no path behind its colon"),
        (&["clone", ":path", "b"], "has no host before its colon"),
        (&["clone", "-oProxyCommand=x:y", "b"], "unexpected argument '-o'"),
        (&["clone", "--", "-oProxyCommand=x:y", "b"], "has no host before its colon"),
        (&["manifest"], "Usage: blockferry manifest"),
        (&["receiver", "--config", "/no/such.toml"], "config example --receiver"),
    ] {
        let ended = ferry.run(arguments);
        ended.says(2, &[word]);
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    assert!(!ferry.path("state").exists());
}

/// Who asked for JSON gets JSON, also for an option that does not exist.
#[test]
fn json_begins_with_hello_and_ends_with_the_exit_code_whatever_happens() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 300_000)), ferry.name("target"));
    for (arguments, code, types) in [
        (&["clone", &source, &target][..], 0, &["hello", "summary", "exit"][..]),
        (&["clone", &source, &target, "-n"], 0, &["hello", "summary", "exit"]),
        (&["status"], 0, &["hello", "source", "replica", "summary", "exit"]),
        (&["clone", &source, &source], 8, &["hello", "error", "exit"]),
        (&["clone", "/no/such", &target], 2, &["hello", "error", "exit"]),
        (&["clone", &source, "there:/x", "--rsh", "false"], 4, &["hello", "error", "exit"]),
        (&["clone", &source, &target, "--frob"], 2, &["hello", "error", "exit"]),
        (&["frob"], 2, &["hello", "error", "exit"]),
        (&["resync", &target], 0, &["hello", "summary", "exit"]),
        (&["manifest", "show", &source], 2, &["hello", "error", "exit"]),
    ] {
        let ended = ferry.json(arguments);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        // One that takes a second or more tells of its progress, too.
        let lines = ended.lines();
        let found: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).filter(|kind| *kind != "progress").collect();
        assert_eq!(found, types, "{arguments:?}");
        if code != 0 {
            assert_eq!(ended.stderr, "", "the error is in the JSON, once");
        }
    }
    assert_eq!(ferry.run(&["--help", "--json"]).code, Some(0));
}

#[test]
fn the_summary_tells_what_happened_in_two_lines() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 3 << 20)), ferry.name("target"));
    let first = ferry.run(&["clone", &source, &target]);
    assert_data_eq!(
        said(&ferry, &first.stdout),
        str![[r#"
/t/source → /t/target: generation 1 (first copy)
  read 3.00 MiB, 48 extents differ, sent 768 blocks (3.00 MiB) in 3.0[..] MiB on the wire (ratio 1.00), took [..] s

"#]]
    );
    assert_eq!(first.stderr, "");
    let same = ferry.run(&["clone", &source, &target]);
    assert_data_eq!(
        said(&ferry, &same.stdout),
        str![[r#"
/t/source → /t/target: generation 2 (nothing changed)
  read 3.00 MiB, 0 extents differ, sent 0 blocks (0 B), took [..] s

"#]]
    );
    change_blocks(&source, [1, 2, 100]);
    let plan = ferry.run(&["clone", "-n", &source, &target]);
    assert_data_eq!(
        said(&ferry, &plan.stdout),
        str![[r#"
/t/source → /t/target: nothing was written
  read 3.00 MiB, 2 extents differ, would send 3 blocks (12.00 KiB), took [..] s

"#]]
    );
    let changed = ferry.run(&["clone", &source, &target]);
    assert_data_eq!(
        said(&ferry, &changed.stdout),
        str![[r#"
/t/source → /t/target: generation 3 (changes)
  read 3.00 MiB, 2 extents differ, sent 3 blocks (12.00 KiB) in 12.[..] KiB on the wire (ratio [..]), took [..] s

"#]]
    );
    let quiet = ferry.run(&["clone", "-q", &source, &target]);
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn errors_name_the_operation_the_object_and_the_cause() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 300_000)), ferry.image("target", &noise(2, 300_000)));
    let complaint = |code: i32, arguments: &[&str]| {
        let ended = ferry.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{ended:?}");
        said(&ferry, &ended.stderr)
    };
    assert_data_eq!(
        complaint(2, &["clone", &ferry.name("nothing"), &target]),
        str![[r#"
blockferry: look at /t/nothing: No such file or directory (os error 2)

"#]]
    );
    assert_data_eq!(
        complaint(2, &["clone", &source, &ferry.name("no/folder")]),
        str![[r#"
blockferry: find the folder of /t/no/folder: No such file or directory (os error 2)

"#]]
    );
    assert_data_eq!(
        complaint(2, &["clone", &source, "/dev/null"]),
        str![[r#"
blockferry: /dev/null is neither a block device nor a regular file

"#]]
    );
    assert_data_eq!(
        complaint(8, &["clone", &source, &target]),
        str![[r#"
blockferry: /t/target exists and holds data: --overwrite if it may be lost (blocks that are equal already are kept)

"#]]
    );
    assert_data_eq!(
        complaint(8, &["clone", &source, &source]),
        str![[r#"
blockferry: source and target are the same: /t/source and /t/source are the same file

"#]]
    );
    assert_data_eq!(
        complaint(8, &["clone", &ferry.hole("empty", 0), &target]),
        str![[r#"
blockferry: a volume of 0 bytes cannot be replicated

"#]]
    );
    assert_data_eq!(
        complaint(4, &["clone", &source, "there:/x", "--rsh", "sh -c 'exit 255'"]),
        str![[r#"
blockferry: the remote shell to there ended with exit status: 255: there[..] is blockferry installed there?

"#]]
    );
    assert_data_eq!(
        complaint(2, &["clone", &source, "there:/x", "--rsh", "no-such-shell"]),
        str![[r#"
blockferry: run the remote shell no-such-shell (--rsh chooses another): No such file or directory (os error 2)

"#]]
    );
    assert_data_eq!(
        complaint(2, &["clone", "here:/x", "there:/x"]),
        str![[r#"
blockferry: SRC and DST are both on other hosts: run blockferry on one of them

"#]]
    );
    assert_data_eq!(
        complaint(8, &["clone", &source, "there:/x", "--rsh", "sh -c 'echo Welcome to this host'"]),
        str![[r#"
blockferry: the peer is not blockferry: it said "Welcome to this host" (does its login shell print something?)

"#]]
    );
    assert_data_eq!(
        complaint(2, &["verify", "there:/x", &target]),
        str![[r#"
blockferry: verify reads SRC on this host: run it on the host of the source

"#]]
    );
    assert_data_eq!(
        complaint(2, &["resync", &target]),
        str![[r#"
blockferry: /t/target is no replica that /t/state knows of: `blockferry status` lists them

"#]]
    );
    assert_data_eq!(
        complaint(2, &["manifest", "show", &target]),
        str![[r#"
blockferry: /t/target is no manifest of blockferry, or its header is damaged

"#]]
    );
}

/// The other end's reason arrives here with its code, whichever side is the remote one.
#[test]
fn a_refusal_on_the_other_host_is_told_here() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 300_000)), ferry.image("target", &noise(2, 300_000)));
    let remote = ferry.remote();
    let options: Vec<&str> = remote.iter().map(String::as_str).collect();
    for (from, to) in [(source.clone(), format!("there:{target}")), (format!("there:{source}"), target.clone())] {
        let ended = ferry.json(&[&["clone", &from, &to], options.as_slice()].concat());
        assert_eq!(ended.code, Some(8), "{ended:?}");
        let message = ended.of_type("error")[0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("exists and holds data: --overwrite if it may be lost"), "{message}");
    }
    let absent = format!("there:{}", ferry.name("nothing"));
    let ended = ferry.json(&[&["clone", &absent, &ferry.name("new")], options.as_slice()].concat());
    assert!(ended.of_type("error")[0]["message"].as_str().unwrap().contains("nothing: No such file or directory"), "{ended:?}");
}

/// Off a terminal there are neither escapes nor carriage returns: a log stays readable.
#[test]
fn nothing_is_drawn_where_there_is_no_terminal() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 24 << 20)), ferry.name("target"));
    for arguments in [&["clone", &source, &target][..], &["clone", &source, &source], &["verify", &source, &target], &["--help"], &["frob"]]
    {
        let ended = ferry.run(arguments);
        for text in [&ended.stdout, &ended.stderr] {
            assert!(!text.contains(['\x1b', '\r']), "{text:?}");
        }
    }
}

/// Whoever reads may stop reading: the run goes on to its end and its code.
#[test]
fn a_reader_that_leaves_early_breaks_nothing() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 300_000)), ferry.name("target"));
    for (arguments, code) in [
        (&["clone", &source, &target, "--json"][..], 0),
        (&["status"], 0),
        (&["verify", &source, &target], 0),
        (&["--help"], 0),
        (&["frob", "--json"], 2),
    ] {
        let mut child = ferry.start(arguments);
        // Closed before the first line is read.
        drop(child.stdout.take());
        let ended = Ended::of(child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
    let mut child = ferry.start(&["frob"]);
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2), "an error that nobody reads keeps its code");
    let mut child = ferry.start(&["clone", &source, &source]);
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(8), "an error that nobody reads keeps its code");
    ferry::equal(&source, &target);
}

/// The state directory is for its owner: it has the secrets that digests are made with.
#[test]
fn the_state_directory_is_private_and_chosen_by_option_or_environment() {
    use std::os::unix::fs::PermissionsExt;
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 10_000)), ferry.name("target"));
    let run = Command::new(ferry::PROGRAM)
        .args(["clone", &source, &target])
        .env("BLOCKFERRY_STATE_DIR", ferry.path("elsewhere"))
        .output()
        .unwrap();
    assert!(run.status.success());
    assert_eq!(std::fs::metadata(ferry.path("elsewhere")).unwrap().permissions().mode() & 0o777, 0o700);
    let record = ferry.pair("elsewhere", "sources").join("record");
    assert_eq!(std::fs::metadata(record).unwrap().permissions().mode() & 0o077, 0);
    let nowhere = Command::new(ferry::PROGRAM).args(["status", "--state-dir", "/proc/nowhere"]).output().unwrap();
    Ended::of(nowhere).says(1, &["make the state directory /proc/nowhere", "(--state-dir chooses another)"]);
}

/// A full disk under standard output is not a reason to stop copying, but the caller has to know.
#[test]
fn what_cannot_be_printed_is_a_failure() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 10_000)), ferry.name("target"));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = ferry.command(&["clone", &source, &target, "--json"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    ferry::equal(&source, &target);
    Ended::of(ended).says(1, &["print the result", "No space left on device"]);
}
