//! One run of a job, with the real binary: several volumes and receivers, hooks, idle volumes, and what is remembered of it.

#[path = "rig/ferry.rs"]
mod ferry;
#[path = "rig/loops.rs"]
mod loops;
#[path = "rig/receiver.rs"]
mod receiver;

use ferry::{Ended, Ferry, PROGRAM, change_blocks, equal, noise};
use loops::{Loop, is_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receiver::{Agent, Receiver};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A host with an agent.toml.
struct Stand {
    ferry: Ferry,
}

impl Stand {
    /// `receivers` and `jobs` as they stand in the file; FOLDER is the stand's own.
    fn new(text: &str) -> Stand {
        let stand = Stand { ferry: Ferry::new() };
        ["near", "far"].iter().for_each(|name| fs::create_dir(stand.ferry.path(name)).expect("a folder"));
        stand.configure(text);
        stand
    }

    fn configure(&self, text: &str) {
        let text = text.replace("FOLDER", self.ferry.folder.path().to_str().expect("plain text"));
        fs::write(self.ferry.path("agent.toml"), text).expect("a configuration");
    }

    /// A command line that is run in the folder `near`: that is where local replicas lie.
    fn command(&self, arguments: &[&str]) -> Command {
        let config = self.ferry.name("agent.toml");
        let mut command = self.ferry.command(&[arguments, &["--config", &config]].concat());
        command.current_dir(self.ferry.path("near"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().expect("the program runs"))
    }

    fn json(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(&[arguments, &["--json"]].concat());
        ended.check_json();
        ended
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    /// The replica of a volume at the receiver `here`.
    fn near(&self, volume: &str) -> PathBuf {
        self.ferry.path(&format!("near/r-{volume}"))
    }

    /// The replica at the receiver `there`, which is reached through a remote shell: not while the file `down` exists.
    fn far(&self, volume: &str) -> PathBuf {
        self.ferry.path(&format!("far/r-{volume}"))
    }

    /// The receiver `there`.
    fn there(&self) -> String {
        let folder = self.ferry.folder.path().display();
        let script = format!("[ ! -e {folder}/down ] || exit 7\nshift\ncd {folder}/far\nexec sh -c \"$*\"\n");
        fs::write(self.ferry.path("rsh.sh"), script).expect("a script");
        format!(
            "[[receiver]]\nname = \"there\"\nssh = \"far\"\nrsh = \"sh {folder}/rsh.sh\"\nremote_program = \"{PROGRAM} --state-dir {folder}/remote\"\n"
        )
    }

    fn book(&self, job: &str) -> Value {
        let text = fs::read(self.ferry.path(&format!("state/agent/jobs/{job}/book.json"))).expect("a book");
        serde_json::from_slice(&text).expect("a whole book")
    }

    fn history(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.ferry.path("state/agent/history.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("whole lines")).collect()
    }
}

const LOCAL: &str = "[[receiver]]\nname = \"here\"\nlocal = true\n";

/// A job of image files or devices; what they are called is what their replicas are called.
fn job(name: &str, receivers: &str, volumes: &[&str], more: &str) -> String {
    let volumes: Vec<String> =
        volumes.iter().map(|volume| format!("{{ source = \"FOLDER/{volume}\", replica = \"r-{volume}\" }}")).collect();
    format!("[[job]]\nname = \"{name}\"\nreceivers = [{receivers}]\nvolumes = [{}]\n{more}\n", volumes.join(", "))
}

/// The results of the legs, in the order of the configuration: `committed 2`, `idle 1`, `failed 4`, `passed-over`.
fn legs(ended: &Ended) -> Vec<String> {
    let number = |leg: &Value| match leg["result"].as_str() {
        Some("failed") => format!(" {}", leg["exit"]),
        Some("passed-over") => String::new(),
        _ => format!(" {}", leg["generation"]),
    };
    ended.of_type("leg").iter().map(|leg| format!("{}{}", leg["result"].as_str().expect("a result"), number(leg))).collect()
}

fn read_bytes(ended: &Ended) -> u64 {
    ended.summary().count("read_bytes")
}

#[test]
fn volumes_reach_a_daemon_by_name_and_a_pinned_key_and_one_that_is_down_is_exit_4() {
    let agent = Agent::new();
    let mut receiver = Receiver::start(&["data", "log"], &agent.entry("prod1", "*", "\"push\""));
    let (data, log) = (agent.image("data", 3 * MIB, 1), agent.image("log", MIB, 2));
    let config = agent.folder.path().join("agent.toml");
    let text = format!(
        "state_dir = \"{}\"\n[[receiver]]\nname = \"dr\"\naddress = \"{}\"\npin = \"{}\"\n\
         [[job]]\nname = \"db\"\nreceivers = [\"dr\"]\nevery = \"1h\"\nbandwidth = \"50MiB/s\"\n\
         volumes = [{{ source = \"{}\", replica = \"data\" }}, {{ source = \"{}\", replica = \"log\" }}]\n",
        agent.state.path().display(),
        receiver.address,
        receiver.pin,
        data.display(),
        log.display()
    );
    fs::write(&config, text).expect("a configuration");
    // The state directory is that of agent.toml.
    let run = || {
        let mut command = Command::new(PROGRAM);
        command.args(["run", "db", "--json", "--config"]).arg(&config).env_remove("BLOCKFERRY_STATE_DIR");
        let ended = Ended::of(command.output().expect("the program runs"));
        ended.check_json();
        ended
    };
    assert_eq!(legs(&run()), ["committed 1", "committed 1"]);
    // Its sessions have given their replicas back.
    receiver.wait_for_times("result=committed generation=1", 2);
    change_blocks(&data, [5]);
    assert_eq!(legs(&run()), ["committed 2", "committed 2"]);
    equal(&data, receiver.image("data"));
    equal(&log, receiver.image("log"));
    assert_eq!(receiver.stop(), Some(0));
    let ended = run();
    assert_eq!((ended.code, legs(&ended)), (Some(4), vec!["failed 4".to_owned(); 2]), "{ended:?}");
}

#[test]
fn one_receiver_that_is_down_is_exit_3_and_the_others_are_committed() {
    let stand = Stand::new("");
    stand.configure(&format!("{LOCAL}{}{}", stand.there(), job("db", "\"here\", \"there\"", &["data", "log"], "")));
    let (data, log) = (stand.ferry.image("data", &noise(1, 2 * MIB)), stand.ferry.image("log", &noise(2, MIB)));
    fs::write(stand.ferry.path("down"), "").expect("a file");
    let ended = stand.json(&["run", "db"]);
    assert_eq!((ended.code, legs(&ended)), (Some(3), ["committed 1", "failed 4", "committed 1", "failed 4"].map(str::to_owned).into()));
    equal(&data, stand.near("data"));
    equal(&log, stand.near("log"));
    let book = stand.book("db");
    assert_eq!((&book["failures"], &book["running"], &book["last"]["failure"]["exit"]), (&1.into(), &Value::Null, &3.into()));
    let failing: Vec<&Value> = book["legs"].as_array().expect("legs").iter().map(|leg| &leg["failures"]).collect();
    assert_eq!(failing, [0, 1, 0, 1]);
    // As text: each failure with its place, and in the end how many there were.
    let ended = stand.run(&["run", "db"]);
    ended.says(3, &["data → r-data at there", "log → r-log at there", "2 of 4 transfers failed"]);
    // It comes back, and goes on from where it was: at the beginning. The other one is at its third generation.
    fs::remove_file(stand.ferry.path("down")).expect("removed");
    change_blocks(&data, [9]);
    let ended = stand.json(&["run", "db"]);
    assert_eq!(
        (ended.code, legs(&ended)),
        (Some(0), ["committed 3", "committed 1", "committed 3", "committed 1"].map(str::to_owned).into())
    );
    equal(&data, stand.near("data"));
    equal(&data, stand.far("data"));
    equal(&log, stand.far("log"));
    let book = stand.book("db");
    assert!(book["failures"] == 0 && book["last_success_ms"].is_u64(), "{book}");
    let history = stand.history();
    assert_eq!(history.iter().map(|run| run["legs"].as_array().expect("legs").len()).collect::<Vec<_>>(), [4, 4, 4]);
}

#[test]
fn hooks_surround_the_snapshots_and_are_told_what_it_is_about() {
    let hook = |name: &str| {
        let words = "$1 $BLOCKFERRY_HOOK $BLOCKFERRY_JOB $(echo $BLOCKFERRY_GENERATION) $(echo $BLOCKFERRY_VOLUMES | wc -w) $(ls FOLDER/near/r-data 2>/dev/null | wc -l)";
        format!(
            "[[job.hook]]\nrun = [\"/bin/sh\", \"-c\", \"echo {name} {words} >> FOLDER/calls; [ ! -e FOLDER/no-{name} ] || [ $1 = post ]\", \"hook\"]\n"
        )
    };
    let text = format!("{LOCAL}{}{}{}", job("db", "\"here\"", &["data", "log"], ""), hook("one"), hook("two"));
    let stand = Stand::new(&text);
    stand.ferry.image("data", &noise(1, MIB));
    stand.ferry.image("log", &noise(2, MIB));
    let calls = || {
        let text = fs::read_to_string(stand.ferry.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(stand.ferry.path("calls"));
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(stand.run(&["run", "db"]).code, Some(0));
    // The last number: whether the replica was there already, which is made by the transfer.
    assert_eq!(calls(), ["one pre pre db 1 1 2 0", "two pre pre db 1 1 2 0", "two post post db 1 1 2 0", "one post post db 1 1 2 0"]);
    fs::write(stand.ferry.path("no-two"), "").expect("a file");
    let ended = stand.json(&["run", "db"]);
    assert_eq!((ended.code, legs(&ended)), (Some(1), vec!["passed-over".to_owned(); 2]), "{ended:?}");
    assert_eq!(calls(), ["one pre pre db 2 2 2 1", "two pre pre db 2 2 2 1", "two post post db 2 2 2 1", "one post post db 2 2 2 1"]);
    assert!(stand.history()[1]["failure"]["message"].as_str().expect("words").contains("exit status: 1"));
    assert_eq!(stand.run(&["plan", "db", "--brief"]).code, Some(0));
    assert_eq!(calls(), [""; 0], "a plan calls nothing");
}

#[test]
fn a_second_run_of_a_job_is_exit_5_and_a_killed_one_is_completed_by_the_next() {
    let hook = "[[job.hook]]\nrun = [\"/bin/sh\", \"-c\", \"[ ! -e FOLDER/wait ] || [ $1 = post ] || { touch FOLDER/waiting; sleep 60; }\", \"hook\"]\n";
    let stand = Stand::new(&format!("{LOCAL}{}{hook}", job("db", "\"here\"", &["data"], "")));
    let data = stand.ferry.image("data", &noise(1, MIB));
    fs::write(stand.ferry.path("wait"), "").expect("a file");
    let mut first = stand.start(&["run", "db"]);
    appears(&stand.ferry.path("waiting"));
    let second = stand.json(&["run", "db"]);
    assert_eq!(second.code, Some(5), "{second:?}");
    assert!(second.stdout.contains(&format!("process {}", first.id())), "{second:?}");
    assert_eq!(stand.book("db")["running"]["pid"], first.id());
    first.kill().expect("kill -9");
    first.wait().expect("its end");
    fs::remove_file(stand.ferry.path("wait")).expect("removed");
    let third = stand.json(&["run", "db"]);
    assert_eq!((third.code, legs(&third)), (Some(0), vec!["committed 1".to_owned()]), "{third:?}");
    equal(&data, stand.near("data"));
    let history = stand.history();
    assert_eq!(history.len(), 2);
    let message = history[0]["failure"]["message"].as_str().expect("words");
    assert!(message.contains(&format!("process {}", first.id())) && message.contains("killed"), "{message}");
    assert_eq!(stand.book("db")["running"], Value::Null);
}

/// The first copy is cut twenty times at a random moment; what came to the replica is kept and the next run completes it.
#[test]
fn runs_that_are_killed_in_the_middle_leave_nothing_that_the_next_does_not_complete() {
    let stand = Stand::new(&format!("{LOCAL}{}", job("db", "\"here\"", &["data", "log"], "")));
    let (data, log) = (stand.ferry.image("data", &noise(1, 24 * MIB)), stand.ferry.image("log", &noise(2, 8 * MIB)));
    for round in 0..8u64 {
        let mut child = stand.start(&["run", "db"]);
        std::thread::sleep(Duration::from_millis(15 + round * 17));
        child.kill().expect("kill -9");
        child.wait().expect("its end");
        change_blocks(&data, [round, 100 + round]);
        change_blocks(&log, [round]);
    }
    let ended = stand.json(&["run", "db"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    equal(&data, stand.near("data"));
    equal(&log, stand.near("log"));
    let doctor = stand.ferry.run(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let sides = ["sources", "replicas"].map(|side| fs::read_dir(stand.ferry.path("state").join(side)).expect("a side").count());
    assert_eq!(sides, [2, 2]);
}

#[test]
fn a_signal_stops_a_run_and_the_book_says_so() {
    let hook = "[[job.hook]]\nrun = [\"/bin/sh\", \"-c\", \"[ $1 = post ] || { touch FOLDER/waiting; sleep 60; }\", \"hook\"]\n";
    let stand = Stand::new(&format!("{LOCAL}{}{hook}", job("db", "\"here\"", &["data"], "")));
    stand.ferry.image("data", &noise(1, MIB));
    let child = stand.start(&["run", "db"]);
    appears(&stand.ferry.path("waiting"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
    let ended = Ended::of(child.wait_with_output().expect("its end"));
    assert_eq!(ended.code, Some(128 + Signal::SIGTERM as i32), "{ended:?}");
    let book = stand.book("db");
    assert_eq!((&book["last"]["failure"]["exit"], &book["failures"], &book["running"]), (&130.into(), &0.into(), &Value::Null));
}

#[test]
fn a_pause_holds_for_timers_and_not_for_a_person() {
    let stand = Stand::new(&format!("{LOCAL}{}", job("db", "\"here\"", &["data"], "")));
    stand.ferry.image("data", &noise(1, MIB));
    let ended = stand.run(&["pause", "db", "--for", "2h", "--reason", "disk swap"]);
    assert!(ended.code == Some(0) && ended.stdout.starts_with("db: paused until 20"), "{ended:?}");
    let paused = &stand.book("db")["paused"];
    assert_eq!(paused["until_ms"].as_u64().zip(paused["since_ms"].as_u64()).map(|(until, since)| until - since), Some(7_200_000));
    let ended = stand.json(&["run", "db", "--scheduled"]);
    assert_eq!((ended.code, legs(&ended).len()), (Some(0), 0), "{ended:?}");
    let ended = stand.run(&["run", "--scheduled", "db"]);
    assert!(ended.stdout.contains("disk swap") && ended.stdout.contains("nothing was done"), "{ended:?}");
    assert_eq!(legs(&stand.json(&["run", "db"])), ["committed 1"]);
    assert_eq!(stand.run(&["resume", "db"]).stdout, "db: goes on\n");
    assert_eq!(stand.run(&["resume", "db"]).stdout, "db: was not paused\n");
    assert_eq!(legs(&stand.json(&["run", "db", "--scheduled"])), ["committed 2"]);
    stand.run(&["pause", "nope"]).says(2, &["no job \"nope\"", "there is db"]);
}

#[test]
fn what_needs_an_operator_is_passed_over_by_schedule_until_somebody_asks() {
    let stand = Stand::new(&format!("{LOCAL}{}", job("db", "\"here\"", &["data", "log"], "")));
    let data = stand.ferry.image("data", &noise(1, MIB));
    stand.ferry.image("log", &noise(2, MIB));
    stand.ferry.image("near/r-data", &noise(3, MIB));
    let ended = stand.json(&["run", "db", "--scheduled"]);
    assert_eq!((ended.code, legs(&ended)), (Some(3), ["failed 8", "committed 1"].map(str::to_owned).into()), "{ended:?}");
    let ended = stand.json(&["run", "db", "--scheduled"]);
    assert_eq!((ended.code, legs(&ended)), (Some(0), ["passed-over", "committed 2"].map(str::to_owned).into()), "{ended:?}");
    assert_eq!(stand.book("db")["last_success_ms"], Value::Null, "a job with a replica that waits is not current");
    let ended = stand.json(&["run", "db"]);
    assert_eq!((ended.code, legs(&ended)), (Some(3), ["failed 8", "committed 3"].map(str::to_owned).into()), "{ended:?}");
    let ended = stand.json(&["run", "db", "--overwrite"]);
    assert_eq!((ended.code, legs(&ended)), (Some(0), ["committed 1", "committed 4"].map(str::to_owned).into()), "{ended:?}");
    equal(&data, stand.near("data"));
    assert!(stand.book("db")["last_success_ms"].is_u64());
}

#[test]
fn a_job_that_is_renamed_keeps_its_generations() {
    let stand = Stand::new(&format!("{LOCAL}{}", job("db", "\"here\"", &["data"], "")));
    stand.ferry.image("data", &noise(1, MIB));
    assert_eq!(legs(&stand.json(&["run", "db"])), ["committed 1"]);
    let renamed = format!("{}{}", LOCAL.replace("here", "attic"), job("postgres", "\"attic\"", &["data"], ""));
    stand.configure(&renamed);
    let ended = stand.json(&["run", "postgres"]);
    assert_eq!((legs(&ended), read_bytes(&ended)), (vec!["committed 2".to_owned()], MIB as u64));
    assert_eq!(ended.of_type("leg")[0]["sent_blocks"], 0);
}

#[test]
fn a_plan_says_what_a_run_would_do_and_writes_nothing() {
    let hook = "[[job.hook]]\nrun = [\"/bin/sh\", \"-c\", \"touch FOLDER/called\", \"hook\"]\n";
    let stand = Stand::new(&format!("{LOCAL}{}{hook}", job("db", "\"here\"", &["data", "new"], "")));
    let data = stand.ferry.image("data", &noise(1, 2 * MIB));
    stand.configure(&format!("{LOCAL}{}", job("db", "\"here\"", &["data"], "")));
    assert_eq!(stand.run(&["run", "db"]).code, Some(0));
    change_blocks(&data, [3, 200]);
    stand.configure(&format!("{LOCAL}{}{hook}", job("db", "\"here\"", &["data", "new"], "")));
    stand.ferry.image("new", &noise(2, MIB));
    let before = snapshot_of(stand.ferry.folder.path());
    let ended = stand.json(&["plan", "db"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let legs = ended.of_type("leg");
    assert_eq!(
        (&legs[0]["would"], &legs[0]["base_generation"], &legs[0]["sent_blocks"]),
        (&"send".into(), &1.into(), &2.into()),
        "{ended:?}"
    );
    assert_eq!((&legs[1]["would"], &legs[1]["base_generation"], &legs[1]["sent_blocks"]), (&"send".into(), &0.into(), &256.into()));
    let ended = stand.run(&["plan", "db"]);
    for words in ["touch", "first copy", "since generation 1", "would send 2 blocks"] {
        assert!(ended.stdout.contains(words), "{words}: {ended:?}");
    }
    let ended = stand.run(&["plan", "--all", "--brief"]);
    assert!(ended.code == Some(0) && ended.stdout.contains("since generation 1") && !ended.stdout.contains("blocks"), "{ended:?}");
    assert_eq!(snapshot_of(stand.ferry.folder.path()), before);
}

#[test]
fn a_volume_that_nobody_wrote_to_costs_no_read() {
    if !is_root("a_volume_that_nobody_wrote_to_costs_no_read") {
        return;
    }
    let text = |more: &str| format!("{LOCAL}{}", job("db", "\"here\"", &["data", "log"], more));
    let stand = Stand::new(&text(""));
    let images = ["data", "log"].map(|name| {
        fs::write(stand.ferry.path(&format!("{name}.img")), noise(1, 4 * MIB)).expect("an image");
        Loop::over(&stand.ferry.path(&format!("{name}.img")), 512)
    });
    for (name, device) in ["data", "log"].iter().zip(&images) {
        std::os::unix::fs::symlink(&device.0, stand.ferry.path(name)).expect("a link");
    }
    assert_eq!(legs(&stand.json(&["run", "db"])), ["committed 1"; 2]);
    // Somebody else (a scanner of this host) may look at a new device, but not each time.
    let reads_nothing = (0..3).any(|_| {
        let read = sectors_read(&images[0].0);
        let ended = stand.json(&["run", "db"]);
        assert_eq!((ended.code, legs(&ended)), (Some(0), vec!["idle 1".to_owned(); 2]), "{ended:?}");
        sectors_read(&images[0].0) == read
    });
    assert!(reads_nothing, "the kernel says that something was read");
    // What only the page cache has yet is a write.
    let device = fs::File::options().write(true).open(&images[0].0).expect("the device");
    std::os::unix::fs::FileExt::write_all_at(&device, &[9; 4096], 40960).expect("a write");
    drop(device);
    assert_eq!(legs(&stand.json(&["run", "db"])), ["committed 2", "idle 1"]);
    equal(&images[0].0, stand.near("data"));
    assert_eq!(legs(&stand.json(&["run", "db"])), ["idle 2", "idle 1"]);
    assert_eq!(legs(&stand.json(&["run", "db", "--idle-too"])), ["committed 3", "committed 2"]);
    // The one of which it is said is read, the other is not.
    stand.configure(&text("").replace("r-log\"", "r-log\", idle_too = true"));
    assert_eq!(legs(&stand.json(&["run", "db"])), ["idle 3", "committed 3"]);
    let planned = stand.run(&["plan", "db", "--brief"]);
    assert!(planned.stdout.contains("since generation 3") && planned.stdout.matches("since generation").count() == 1, "{planned:?}");
    stand.configure(&text("idle_too = true"));
    assert_eq!(legs(&stand.json(&["run", "db"])), ["committed 4", "committed 4"]);
    // What a hook makes somebody write belongs to the moment that the hook is there for.
    let hook = format!(
        "[[job.hook]]\nrun = [\"/bin/sh\", \"-c\", \"[ $1 = post ] || printf x | dd of={} bs=1 seek=70000 conv=notrunc,fsync status=none\", \"hook\"]\n",
        images[1].0.display()
    );
    stand.configure(&format!("{}{hook}", text("")));
    assert_eq!(legs(&stand.json(&["run", "db"])), ["idle 4", "idle 4"], "nothing to snapshot, no hook");
    change_blocks(&images[0].0, [7]);
    assert_eq!(legs(&stand.json(&["run", "db"])), ["committed 5", "committed 5"]);
    equal(&images[1].0, stand.near("log"));
}

/// A volume that lies still needs no snapshot, as a mounted one has one that makes it write. Here a hook is who writes.
#[test]
fn a_volume_that_is_written_to_while_it_is_read_as_if_it_lay_still_is_read_again() {
    if !is_root("a_volume_that_is_written_to_while_it_is_read_as_if_it_lay_still_is_read_again") {
        return;
    }
    let stand = Stand::new("");
    fs::write(stand.ferry.path("data.img"), noise(1, 4 * MIB)).expect("an image");
    let device = Loop::over(&stand.ferry.path("data.img"), 512);
    std::os::unix::fs::symlink(&device.0, stand.ferry.path("data")).expect("a link");
    let script = format!(
        "echo $1 >> FOLDER/calls; [ $1 = pre ] || [ ! -e FOLDER/busy ] || date +%N | dd of={} bs=1 seek=70000 conv=notrunc,fsync status=none",
        device.0.display()
    );
    let hook = format!("[[job.hook]]\nrun = [\"/bin/sh\", \"-c\", \"{script}\", \"hook\"]\n");
    stand.configure(&format!("{LOCAL}{}{hook}", job("db", "\"here\"", &["data"], "")));
    let busy = |is: bool| {
        let path = stand.ferry.path("busy");
        if is { fs::write(path, "").expect("a file") } else { fs::remove_file(path).expect("removed") }
    };
    let run = || {
        let _ = fs::remove_file(stand.ferry.path("calls"));
        let legs = legs(&stand.json(&["run", "db"]));
        let rounds = fs::read_to_string(stand.ferry.path("calls")).unwrap_or_default().matches("pre").count();
        (legs.join(" "), rounds)
    };
    busy(true);
    assert_eq!(run(), ("committed 1".to_owned(), 1));
    busy(false);
    assert_eq!(run(), ("committed 2".to_owned(), 1), "it lies still");
    assert_eq!(run(), ("idle 2".to_owned(), 0));
    busy(true);
    change_blocks(&device.0, [7]);
    assert_eq!(run(), ("committed 3".to_owned(), 1));
    assert_eq!(run(), ("committed 4".to_owned(), 2), "it did not lie still");
    busy(false);
    assert_eq!(run(), ("committed 5".to_owned(), 1));
    assert_eq!(run(), ("idle 5".to_owned(), 0));
    equal(&device.0, stand.near("data"));
}

#[test]
fn a_run_waits_for_a_quiet_moment_and_no_longer_than_it_may() {
    let more = |quiet: &str, limit: &str| format!("quiet_after = \"{quiet}\"\nquiet_wait_max = \"{limit}\"");
    let text = |quiet: &str, limit: &str| format!("{LOCAL}{}", job("db", "\"here\"", &["data"], &more(quiet, limit)));
    let stand = Stand::new(&text("700ms", "1min"));
    stand.ferry.image("data", &noise(1, MIB));
    let began = Instant::now();
    assert_eq!(stand.run(&["run", "db"]).code, Some(0));
    assert!(began.elapsed() >= Duration::from_millis(700));
    // Somebody writes all the time: the longest wait is over, and the run goes on.
    stand.configure(&text("1min", "1s"));
    let began = Instant::now();
    assert_eq!(stand.run(&["run", "db"]).code, Some(0));
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(59));
}

#[test]
fn wrong_words_are_answered_with_the_right_ones() {
    let stand = Stand::new(&format!("{LOCAL}{}", job("db", "\"here\"", &["data"], "")));
    stand.run(&["run"]).says(2, &["<JOB>", "Usage: blockferry run"]);
    stand.run(&["run", "dv"]).says(2, &["there is no job \"dv\"", "there is db"]);
    // A source that is not there is that leg's failure.
    let ended = stand.json(&["run", "db"]);
    assert!(ended.code == Some(2) && ended.stdout.contains("data"), "{ended:?}");
    assert_eq!(stand.run(&["config", "check"]).code, Some(0));
    let shown = stand.run(&["config", "show"]);
    assert!(shown.code == Some(0) && shown.stdout.contains("stall_timeout = \"2min\""), "{shown:?}");
    stand.configure("[[job]]\nname = \"db\"\nreciever = [\"here\"]\n");
    for arguments in [&["config", "check"][..], &["run", "db"]] {
        stand.run(arguments).says(2, &["agent.toml:3: unknown field `reciever`", "did you mean `receivers`?"]);
    }
    fs::remove_file(stand.ferry.path("agent.toml")).expect("removed");
    stand.run(&["run", "db"]).says(2, &["agent.toml", "config example"]);
    let example = stand.ferry.run(&["config", "example"]);
    stand.configure(&example.stdout);
    // It is a good one, of volumes that this host does not have.
    stand.run(&["config", "check"]).says(0, &["its source /dev/vg0/web does not exist", "this host has no replica of this name yet"]);
}

#[test]
fn a_job_after_a_replica_that_nothing_here_serves_is_a_mistake() {
    let stand = Stand::new(&format!("{LOCAL}{}", job("chain", "\"here\"", &["data"], "after = \"replica:mial\"")));
    fs::write(stand.ferry.path("data"), noise(1, MIB)).expect("an image");
    let serve = |device: &str| {
        let text = format!("[[replica]]\nname = \"mail\"\ndevice = {{ file = \"{device}\" }}\n");
        fs::write(stand.ferry.path("receiver.toml"), text).expect("a configuration");
    };
    stand.run(&["config", "check"]).says(0, &["job \"chain\": after = \"replica:mial\"", "no replica of this name yet"]);
    serve("/srv/mail.img");
    stand.run(&["config", "check"]).says(2, &["agent.toml: job \"chain\"", "receiver.toml serves none"]);
    for known in ["mail", "/srv/mail.img"] {
        stand.configure(&format!("{LOCAL}{}", job("chain", "\"here\"", &["data"], &format!("after = \"replica:{known}\""))));
        let ended = stand.run(&["config", "check"]);
        assert!(ended.code == Some(0) && !ended.stderr.contains("no replica"), "{known}: {ended:?}");
    }
}

fn appears(path: &Path) {
    let until = Instant::now() + Duration::from_secs(240);
    while !path.exists() {
        assert!(Instant::now() < until, "{} never appeared", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every file below a folder with its content; folders too.
fn snapshot_of(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path.clone());
                all.insert(path, Vec::new());
            } else if path.file_name().is_some_and(|name| name != "lock") {
                all.insert(path.clone(), fs::read(&path).expect("a file"));
            }
        }
    }
    all
}

fn sectors_read(device: &Path) -> u64 {
    let name = device.file_name().expect("a name").to_str().expect("plain text");
    let text = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("statistics");
    text.split_whitespace().nth(2).expect("the third number").parse().expect("a number")
}
