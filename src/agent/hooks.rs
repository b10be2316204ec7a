//! Hooks: programs of the administrator around the snapshot, such as one that puts a data base into its backup mode
//! and takes it out again.
//!
//! They are a stack. `pre` is called in the order of the configuration before the snapshots are made, `post` in the
//! reverse order after they are, for every hook whose `pre` was started: also where that `pre` failed or ran into its
//! time limit, where a later hook failed, where no snapshot came to be, and where the run is stopped. A `post` must
//! therefore be harmless after a `pre` that did only half of its work. Only a `kill -9` of blockferry itself comes
//! between the two.
//!
//! A hook gets `pre` or `post` as its last argument and in its environment
//!
//! | variable | value |
//! |---|---|
//! | `BLOCKFERRY_HOOK` | `pre` or `post` |
//! | `BLOCKFERRY_JOB` | the job's name |
//! | `BLOCKFERRY_RUN_ID` | the run's name in logs and on snapshots |
//! | `BLOCKFERRY_VOLUMES` | the sources, one a line |
//! | `BLOCKFERRY_SNAPSHOTS` | after the snapshots were made: their devices, one a line; else empty |
//! | `BLOCKFERRY_GENERATION` | for each volume, one a line, the generation that this run is to become |
//! | `BLOCKFERRY_DRYRUN` | `0`: a dry run names hooks and calls none. Who tries a script by hand may set it to 1 |

use super::config::{HookEntry, OnError};
use crate::error::{Error, Kind, Result};
use crate::limits::{HOOK_OUTPUT_BYTES, HOOK_STOP_GRACE, HOOK_TIMEOUT};
use crate::log;
use crate::program::{Call, How};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What hooks are told of their run.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// The job's name.
    pub job: String,
    /// The run's name.
    pub run_id: String,
    /// The sources.
    pub volumes: Vec<PathBuf>,
    /// For each of them the generation that this run is to become.
    pub generations: Vec<u64>,
    /// Hooks are named and not called.
    pub dry_run: bool,
}

/// The hooks of one run. Dropped early, it still calls what has to be called.
#[derive(Debug)]
pub struct Stack<'a> {
    hooks: &'a [HookEntry],
    around: Around,
    /// Those that were started and have not had their `post`.
    entered: Vec<&'a HookEntry>,
}

/// The two calls of a hook.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edge {
    Pre,
    Post,
}

impl Edge {
    fn word(self) -> &'static str {
        match self {
            Edge::Pre => "pre",
            Edge::Post => "post",
        }
    }
}

/// What a hook did.
enum Done {
    Well,
    Badly(Error),
    /// It was never started, so that there is nothing to undo.
    Never(Error),
}

impl<'a> Stack<'a> {
    /// The hooks of a job for one run.
    pub fn new(hooks: &'a [HookEntry], around: Around) -> Stack<'a> {
        Stack { hooks, around, entered: Vec::new() }
    }

    /// The hooks as one could type them, in the order of their `pre`: what a dry run shows.
    pub fn names(&self) -> Vec<String> {
        self.hooks.iter().map(name).collect()
    }

    /// Calls `pre` of each. A failure of one that is to abort the run ends it, after the `post` of those that were
    /// started; so does the stop flag, which also ends the hook that is running.
    pub fn pre(&mut self, stop: &AtomicBool) -> Result<()> {
        for hook in self.hooks {
            if stop.load(Ordering::Relaxed) {
                return self.abandon(Error::new(Kind::Interrupted, "stopped before the snapshot"));
            }
            let done = self.call(hook, Edge::Pre, &[], Some(stop));
            if !matches!(done, Done::Never(_)) {
                self.entered.push(hook);
            }
            match (done, hook.on_error.unwrap_or_default()) {
                (Done::Well, _) => {}
                (Done::Badly(error) | Done::Never(error), _) if error.kind() == Kind::Interrupted => return self.abandon(error),
                (Done::Badly(error) | Done::Never(error), OnError::Abort) => return self.abandon(error),
                (Done::Badly(error) | Done::Never(error), OnError::Warn) => log::warning(format!("{}; the run goes on", error.chain())),
            }
        }
        Ok(())
    }

    /// Calls `post` of those whose `pre` was started, last first. All of them are called; the first failure of one
    /// that is to abort the run is given back. What undoes something is not stopped by the stop flag.
    pub fn post(&mut self, snapshots: &[PathBuf]) -> Result<()> {
        let mut first = None;
        while let Some(hook) = self.entered.pop() {
            match (self.call(hook, Edge::Post, snapshots, None), hook.on_error.unwrap_or_default()) {
                (Done::Well, _) => {}
                (Done::Badly(error) | Done::Never(error), OnError::Abort) if first.is_none() => first = Some(error),
                (Done::Badly(error) | Done::Never(error), _) => log::warning(error.chain()),
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Undoes what was begun, and gives back why.
    fn abandon(&mut self, why: Error) -> Result<()> {
        if let Err(error) = self.post(&[]) {
            log::warning(error.chain());
        }
        Err(why)
    }

    fn call(&self, hook: &HookEntry, edge: Edge, snapshots: &[PathBuf], stop: Option<&AtomicBool>) -> Done {
        let what = format!("hook `{} {}`", name(hook), edge.word());
        let Some((program, arguments)) = hook.run.split_first() else { return Done::Well };
        if self.around.dry_run {
            log::debug(|| format!("{what}: not called in a dry run"));
            return Done::Well;
        }
        let began = Instant::now();
        let limit = hook.timeout.map_or(HOOK_TIMEOUT, |span| span.0);
        let arguments = arguments.iter().map(String::as_str).chain([edge.word()]);
        let mut call = Call::new(Path::new(program), arguments, limit, HOOK_OUTPUT_BYTES)
            .grace(HOOK_STOP_GRACE)
            .env("BLOCKFERRY_HOOK", edge.word())
            .env("BLOCKFERRY_JOB", &self.around.job)
            .env("BLOCKFERRY_RUN_ID", &self.around.run_id)
            .env("BLOCKFERRY_VOLUMES", lines(&self.around.volumes))
            .env("BLOCKFERRY_SNAPSHOTS", lines(snapshots))
            .env("BLOCKFERRY_GENERATION", self.around.generations.iter().map(u64::to_string).collect::<Vec<_>>().join("\n"))
            .env("BLOCKFERRY_DRYRUN", "0");
        if let Some(stop) = stop {
            call = call.until(stop);
        }
        let ended = match call.run() {
            Ok(ended) => ended,
            Err(cause) => return Done::Never(Error::because(Kind::Failed, format!("start {what}"), cause)),
        };
        let said = ended.words();
        let how = match ended.how {
            _ if ended.success() => {
                log::debug(|| {
                    format!("{what} took {:.1} s{}{said}", began.elapsed().as_secs_f64(), if said.is_empty() { "" } else { ": " })
                });
                return Done::Well;
            }
            How::Exited(status) => status.to_string(),
            How::TooLong { killed } => {
                format!("no end within {} s, {}", limit.as_secs_f64(), if killed { "killed" } else { "stopped" })
            }
            How::Stopped => return Done::Badly(Error::new(Kind::Interrupted, format!("stopped in {what}"))),
        };
        let said = if said.is_empty() { "it printed no reason".to_owned() } else { said };
        Done::Badly(Error::because(Kind::Failed, format!("{what} ({how})"), said))
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        // Reached with something on the stack only where a run ended between the two calls.
        if let Err(error) = self.post(&[]) {
            log::warning(error.chain());
        }
    }
}

fn name(hook: &HookEntry) -> String {
    shell_words::join(&hook.run)
}

/// Paths, one a line: a path may have a space in it.
fn lines(paths: &[PathBuf]) -> std::ffi::OsString {
    let mut all = std::ffi::OsString::new();
    for (at, path) in paths.iter().enumerate() {
        if at > 0 {
            all.push("\n");
        }
        all.push(path);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::Span;
    use std::time::Duration;

    /// Hooks that write what they are called with into a file, and then do as `then` says.
    struct Bench {
        folder: tempfile::TempDir,
        hooks: Vec<HookEntry>,
    }

    impl Bench {
        fn new(scripts: &[(&str, OnError)]) -> Bench {
            let folder = tempfile::tempdir().unwrap();
            let hook = |(at, (then, on_error)): (usize, &(&str, OnError))| {
                let log = folder.path().join("log");
                let script = format!("echo {at}$1 >> {}; {then}", log.display());
                let run = ["/bin/sh", "-c", &script, "hook"].map(str::to_owned).to_vec();
                HookEntry { run, timeout: Some(Span(Duration::from_secs(20))), on_error: Some(*on_error) }
            };
            let hooks = scripts.iter().enumerate().map(hook).collect();
            Bench { folder, hooks }
        }

        fn stack(&self) -> Stack<'_> {
            let volumes = vec!["/dev/vg0/db".into(), "/srv/a b.img".into()];
            let around = Around { job: "db".into(), run_id: "r1".into(), volumes, generations: vec![4, 1], dry_run: false };
            Stack::new(&self.hooks, around)
        }

        fn called(&self) -> String {
            std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        }
    }

    static GO: AtomicBool = AtomicBool::new(false);

    #[test]
    fn pre_goes_in_order_and_post_in_reverse() {
        let bench = Bench::new(&[("true", OnError::Abort), ("true", OnError::Abort), ("true", OnError::Warn)]);
        let mut stack = bench.stack();
        stack.pre(&GO).unwrap();
        stack.post(&[]).unwrap();
        drop(stack);
        assert_eq!(bench.called(), "0pre 1pre 2pre 2post 1post 0post");
    }

    #[test]
    fn a_failure_ends_the_run_and_undoes_what_was_begun() {
        let bench = Bench::new(&[("true", OnError::Abort), ("echo no room >&2; [ $1 = post ]", OnError::Abort), ("true", OnError::Abort)]);
        let mut stack = bench.stack();
        let error = stack.pre(&GO).unwrap_err().chain();
        assert!(error.contains("pre` (exit status: 1): no room"), "{error}");
        assert_eq!(bench.called(), "0pre 1pre 1post 0post");
        stack.post(&[]).unwrap();
        drop(stack);
        assert_eq!(bench.called(), "0pre 1pre 1post 0post", "each post once");
    }

    #[test]
    fn a_failure_that_is_only_told_does_not_end_the_run() {
        let mut bench = Bench::new(&[("false", OnError::Warn), ("true", OnError::Abort)]);
        bench.hooks.insert(1, HookEntry { run: vec!["/nowhere/hook".into()], timeout: None, on_error: Some(OnError::Warn) });
        let mut stack = bench.stack();
        stack.pre(&GO).unwrap();
        stack.post(&[]).unwrap();
        assert_eq!(bench.called(), "0pre 1pre 1post 0post");
    }

    #[test]
    fn a_hook_that_hangs_is_ended_and_its_post_is_called() {
        // As long as it takes to come so far.
        let ended = |seconds| {
            let mut bench = Bench::new(&[("[ $1 = post ] || { echo waiting; sleep 600 & sleep 600; }", OnError::Abort)]);
            bench.hooks[0].timeout = Some(Span(Duration::from_secs(seconds)));
            let error = bench.stack().pre(&GO).unwrap_err().chain();
            assert!(error.contains(&format!("no end within {seconds} s, stopped")), "{error}");
            error.ends_with("waiting") && bench.called() == "0pre 0post"
        };
        assert!([3, 12, 48].into_iter().any(ended));
    }

    #[test]
    fn a_stop_ends_the_hook_and_a_run_that_is_dropped_still_undoes() {
        let bench = Bench::new(&[("true", OnError::Warn), ("[ $1 = post ] || sleep 600", OnError::Warn)]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| bench.stack().pre(&stop).unwrap_err().kind());
            while !bench.called().contains("1pre") {
                std::thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(running.join().unwrap(), Kind::Interrupted);
        });
        assert_eq!(bench.called(), "0pre 1pre 1post 0post");
        let other = Bench::new(&[("true", OnError::Abort)]);
        other.stack().pre(&GO).unwrap();
        assert_eq!(other.called(), "0pre 0post");
    }

    #[test]
    fn a_post_that_fails_fails_the_run_but_not_the_other_posts() {
        let bench = Bench::new(&[("true", OnError::Abort), ("[ $1 = pre ]", OnError::Abort), ("true", OnError::Abort)]);
        let mut stack = bench.stack();
        stack.pre(&GO).unwrap();
        assert!(stack.post(&[]).unwrap_err().chain().contains("post` (exit status: 1)"));
        assert_eq!(bench.called(), "0pre 1pre 2pre 2post 1post 0post");
    }

    #[test]
    fn what_it_is_about_stands_in_the_environment_and_a_dry_run_calls_nothing() {
        let words = "$BLOCKFERRY_HOOK|$BLOCKFERRY_JOB|$BLOCKFERRY_RUN_ID|$BLOCKFERRY_VOLUMES|$BLOCKFERRY_SNAPSHOTS|$BLOCKFERRY_GENERATION|$BLOCKFERRY_DRYRUN";
        let script = format!("printf '%s' \"{words}\" >&2; exit 1");
        let bench = Bench::new(&[(&script, OnError::Warn)]);
        let stack = bench.stack();
        let Done::Badly(error) = stack.call(&bench.hooks[0], Edge::Post, &["/dev/vg0/db-snap".into()], None) else { panic!() };
        assert!(error.chain().ends_with(": post|db|r1|/dev/vg0/db; /srv/a b.img|/dev/vg0/db-snap|4; 1|0"), "{}", error.chain());
        let bench = Bench::new(&[("true", OnError::Abort)]);
        let mut stack = bench.stack();
        stack.around.dry_run = true;
        stack.pre(&GO).unwrap();
        stack.post(&[]).unwrap();
        assert_eq!((bench.called().as_str(), stack.names().len()), ("", 1));
    }
}
