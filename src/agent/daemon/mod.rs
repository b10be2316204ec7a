//! `blockferry agent`: runs the jobs of agent.toml when they are due.
//!
//! One thread decides, each run has one of its own. What is decided goes by the books, which others write too: a
//! person with `run` or `pause`, a timer. So the agent may be killed at any instant: the next one reads the same books
//! and comes to the same answers, and a run that died with it is one whose tick nobody answered.

mod alarms;
mod clock;
mod figures;
pub mod socket;
mod watched;

use super::bench::Bench;
use super::book::{Shelf, VerifyBook};
use super::config::{AgentConfig, Job};
use super::due::host_seed;
use super::outcome::{Cause, RunReport};
use super::verify::run_slice;
use crate::error::{Error, Kind, Result};
use crate::limits::{AGENT_LOOK, STOP_POLL};
use crate::log;
use crate::settings::local_time_zone;
use crate::state::Lock;
use clock::{Clocks, Jump};
use figures::Figures;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use socket::{Answer, Asked, Question, Socket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;
use watched::{Task, Watched, story, story_of_verify};

/// How a job is run: `agent::run::run`.
pub type Run = fn(&Bench, &Job, Cause, &Arc<AtomicBool>) -> Result<RunReport>;

/// What the agent is started with.
pub struct Daemon {
    /// The configuration.
    pub config: AgentConfig,
    /// Where it came from, to be read again.
    pub config_path: PathBuf,
    /// Where runs are done.
    pub bench: Arc<Bench>,
    /// How.
    pub run: Run,
    /// Ends the agent, and its runs at a point to go on from.
    pub stop: Arc<AtomicBool>,
    /// Asks for the configuration to be read again.
    pub reload: Arc<AtomicBool>,
}

/// What happens.
enum Event {
    /// A run of this job came to its end.
    Ended(String, Result<RunReport>),
    /// A verification of this job's replicas did.
    Verified(String, Result<VerifyBook>),
    /// Somebody asks something.
    Asked(Asked),
}

/// What whoever started us wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Jobs are looked after from now on.
    Ready,
    /// The deciding thread is alive; one line on what it sees.
    Alive(String),
    /// The end has begun.
    Stopping,
}

/// The deciding thread.
struct Agent {
    config: AgentConfig,
    config_path: PathBuf,
    bench: Arc<Bench>,
    run: Run,
    stop: Arc<AtomicBool>,
    jobs: Vec<Watched>,
    zone: TimeZone,
    host: u64,
    clocks: Clocks,
    figures: Figures,
    started_ms: u64,
    events: Sender<Event>,
}

/// The lock that says which process is the agent of a state directory.
fn post(shelf: &Shelf) -> PathBuf {
    shelf.folder().join("daemon")
}

/// The process of the agent, where one runs.
pub fn process(shelf: &Shelf) -> Option<u32> {
    Lock::holder(&post(shelf))
}

fn taken(shelf: &Shelf, error: Error) -> Error {
    let (Kind::Locked, Some(pid)) = (error.kind(), process(shelf)) else { return error };
    let place = shelf.state().path().display();
    Error::new(Kind::Locked, format!("process {pid} is the agent of {place} already; `kill -HUP {pid}` makes it read agent.toml again"))
}

/// A bug of ours ends one run and not the schedule of all.
fn contained<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let bug = || Error::new(Kind::Failed, format!("the {what} ended with a bug of blockferry"));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(bug()))
}

impl Daemon {
    /// Looks after the jobs until the stop flag is set and every run has ended.
    pub fn run(self, tell: &mut dyn FnMut(Sign)) -> Result<()> {
        let shelf = self.bench.shelf.clone();
        let _post = Lock::take(&shelf.state().agent_post()?, "the agent").map_err(|error| taken(&shelf, error))?;
        let socket = Socket::listen(&shelf)?;
        let (zone, doubt) = local_time_zone();
        doubt.iter().for_each(log::warning);
        let (events, coming) = channel();
        let clocks = Clocks::now();
        let mut agent = Agent {
            jobs: self.config.jobs.iter().map(|job| Watched::new(job.clone(), clocks.day_ms)).collect(),
            config: self.config,
            config_path: self.config_path,
            bench: self.bench,
            run: self.run,
            stop: self.stop,
            zone,
            host: host_seed(),
            clocks,
            figures: Figures::default(),
            started_ms: clocks.day_ms,
            events: events.clone(),
        };
        agent.figures.take_over(&agent.config);
        let closed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The socket answers until the last run has ended, so that whoever waits for one can ask.
            let (socket, closed) = (&socket, &closed);
            scope.spawn(move || {
                socket.serve(closed, move |asked| {
                    let _ = events.send(Event::Asked(asked));
                })
            });
            let (listed, zone) = (Arc::clone(&agent.figures.jobs), agent.zone.clone());
            let books = shelf.clone();
            scope.spawn(move || alarms::watch(&books, &listed, &zone, closed));
            tell(Sign::Ready);
            agent.look_after(&coming, &self.reload, tell);
            tell(Sign::Stopping);
            agent.wind_up(&coming, tell);
            closed.store(true, Ordering::Relaxed);
        });
        Ok(())
    }
}

impl Agent {
    /// Decides until the stop flag is set.
    fn look_after(&mut self, coming: &Receiver<Event>, reload: &AtomicBool, tell: &mut dyn FnMut(Sign)) {
        let mut looked: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if reload.swap(false, Ordering::Relaxed)
                && let Err(error) = self.reload()
            {
                log::error(format!("the configuration stays as it was: {}", error.chain()));
            }
            if looked.is_none_or(|looked| looked.elapsed() >= AGENT_LOOK) {
                self.look();
                self.begin_what_is_due();
                self.figures.look(&self.config, &self.bench.shelf, &self.zone);
                tell(Sign::Alive(self.words()));
                looked = Some(Instant::now());
            }
            match coming.recv_timeout(STOP_POLL) {
                Ok(event) => {
                    self.take(event, false);
                    // What ended makes room, and what was asked for is looked at.
                    looked = None;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Stops every run and waits for their ends.
    fn wind_up(&mut self, coming: &Receiver<Event>, tell: &mut dyn FnMut(Sign)) {
        let running = self.jobs.iter_mut().filter_map(|watched| watched.stop_run(false).then(|| watched.job.name.clone()));
        let running: Vec<String> = running.collect();
        if !running.is_empty() {
            log::info(format!("stopping {} at a point to go on from", running.join(", ")));
        }
        while self.jobs.iter().any(|watched| watched.under_way.is_some()) {
            if let Ok(event) = coming.recv_timeout(AGENT_LOOK) {
                self.take(event, true);
            }
            tell(Sign::Alive(self.words()));
        }
    }

    fn take(&mut self, event: Event, stopping: bool) {
        match event {
            Event::Ended(name, result) => {
                self.ended(&name, story(&name, &result), result.as_ref().err(), |watched, shelf| watched.ended(shelf, &result, stopping))
            }
            Event::Verified(name, result) => {
                let now_ms = Clocks::now().day_ms;
                self.ended(&name, story_of_verify(&name, &result), result.as_ref().err(), |watched, shelf| {
                    watched.verified(shelf, &result, now_ms)
                })
            }
            Event::Asked(Asked { question, answer }) => {
                let _ = answer.send(self.answer(question, stopping));
            }
        }
    }

    fn look(&mut self) {
        let clocks = Clocks::now();
        if let Some(jump) = Jump::between(self.clocks, clocks) {
            log::warning(jump.words());
            // A clock put forward shows only now what it ought to have shown: nobody looked before. Back, too.
            self.jobs.iter_mut().for_each(|watched| watched.since_ms = clocks.day_ms);
        }
        self.clocks = clocks;
        for watched in &mut self.jobs {
            let looked = watched.look(&self.bench.shelf, clocks.day_ms, &self.zone, self.host);
            let Err(error) = looked else { continue };
            let words = error.chain();
            if watched.is_news(Some(&words)) {
                log::error(format!("job {}: {words}", watched.job.name));
            }
        }
        // Off the list, and its last run has ended.
        let names: Vec<&str> = self.config.jobs.iter().map(|job| job.name.as_str()).collect();
        self.jobs.retain(|watched| watched.under_way.is_some() || names.contains(&watched.job.name.as_str()));
    }

    /// Those that lag most come first, and runs before verifications.
    fn begin_what_is_due(&mut self) {
        let now_ms = self.clocks.day_ms;
        let running = self.jobs.iter().filter(|watched| watched.under_way.is_some()).count();
        let room = self.config.max_runs.saturating_sub(running);
        let mut due: Vec<(usize, Task)> =
            self.jobs.iter().enumerate().filter_map(|(at, watched)| Some((at, watched.wants(now_ms)?))).collect();
        if due.len() > room && room > 0 {
            let state = self.bench.shelf.state();
            due.sort_by_cached_key(|(at, task)| (*task == Task::Verify, self.jobs[*at].oldest_ms(state)));
        }
        // A verification reads for hours: where there is more than one place, they leave one to the runs.
        let verifying = self.jobs.iter().filter(|watched| watched.under_way.as_ref().is_some_and(|run| run.task == Task::Verify)).count();
        let mut verifications = self.config.max_runs.saturating_sub(1).max(1).saturating_sub(verifying);
        let mut room = room;
        for (at, task) in due {
            let fits = task != Task::Verify || verifications > 0;
            if room > 0 && fits {
                room -= 1;
                verifications -= usize::from(task == Task::Verify);
                self.begin(at, task);
            }
        }
    }

    fn begin(&mut self, at: usize, task: Task) {
        let watched = &mut self.jobs[at];
        let (bench, job, run, events) = (Arc::clone(&self.bench), Arc::clone(&watched.job), self.run, self.events.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        log::debug(|| match task {
            Task::Run(_) => format!("job {}: begins ({})", job.name, watched.due.why.name()),
            Task::Verify => format!("job {}: begins to verify its replicas", job.name),
        });
        let thread = std::thread::Builder::new().name(job.name.chars().take(15).collect());
        let spawned = thread.spawn(move || {
            let name = job.name.clone();
            let _ = events.send(match task {
                Task::Run(cause) => Event::Ended(name, contained("run", || run(&bench, &job, cause, &flag))),
                Task::Verify => Event::Verified(name, contained("verification", || run_slice(&bench, &job, &flag))),
            });
        });
        match spawned {
            Ok(thread) => watched.began(stop, self.clocks.day_ms, task, thread),
            Err(error) => log::error(format!("job {}: make a thread: {error}", watched.job.name)),
        }
    }

    /// Tells the log, and lets the job take note.
    fn ended(
        &mut self,
        name: &str,
        (level, words): (log::Level, String),
        error: Option<&Error>,
        take_note: impl FnOnce(&mut Watched, &Shelf) -> Result<()>,
    ) {
        let Some(watched) = self.jobs.iter_mut().find(|watched| watched.job.name == name) else { return };
        // Locked stays locked for as long as the other run takes.
        let is_locked = error.is_some_and(|error| error.kind() == Kind::Locked);
        if watched.is_news(is_locked.then_some(&*words)) || !is_locked {
            log::tell(level, &words);
        }
        if let Err(error) = take_note(watched, &self.bench.shelf) {
            log::error(format!("job {name}: {}", error.chain()));
        }
    }

    /// Takes a changed configuration over; a bad one changes nothing. Runs go on as they began.
    fn reload(&mut self) -> Result<()> {
        let config = AgentConfig::load(&self.config_path)?;
        if config.state_dir != self.config.state_dir {
            log::warning("state_dir changes with a restart, not with a reload");
        }
        let now_ms = Clocks::now().day_ms;
        for job in &config.jobs {
            match self.jobs.iter_mut().find(|watched| watched.job.name == job.name) {
                Some(watched) => watched.job = Arc::new(job.clone()),
                None => self.jobs.push(Watched::new(job.clone(), now_ms)),
            }
        }
        self.config = config;
        self.figures.take_over(&self.config);
        log::info(format!("configuration reloaded: {} jobs", self.config.jobs.len()));
        Ok(())
    }

    fn answer(&mut self, question: Question, stopping: bool) -> Answer {
        match question {
            Question::Status => Ok(self.status()),
            Question::Reload => self.reload().map(|()| json!(self.config.jobs.len())),
            Question::Run { .. } if stopping => Err(Error::new(Kind::Transient, "the agent is stopping")),
            Question::Run { job } => {
                self.config.job(&job)?;
                let found = self.jobs.iter_mut().find(|watched| watched.job.name == job);
                let watched = found.ok_or_else(|| Error::new(Kind::Failed, format!("job {job} is not on the agent's list")))?;
                watched.asked = true;
                Ok(json!({"under_way": watched.under_way.is_some()}))
            }
            Question::Abort { job } => {
                let watched = self.jobs.iter_mut().find(|watched| watched.job.name == job);
                Ok(json!({"stopping": watched.is_some_and(|watched| watched.stop_run(true))}))
            }
        }
    }

    fn status(&self) -> Value {
        let transfers = self.bench.board.transfers();
        let under_way = |watched: &Watched| {
            let run = watched.under_way.as_ref()?;
            let cause = match run.task {
                Task::Run(cause) => Some(cause),
                Task::Verify => None,
            };
            let own = transfers.iter().filter(|transfer| transfer.job == watched.job.name);
            let transfers: Vec<Value> = own
                .map(|transfer| {
                    json!({
                        "source": transfer.source, "receiver": transfer.receiver, "replica": transfer.replica,
                        "phase": transfer.here.phase().word(),
                        "scanned_bytes": transfer.here.scanned_bytes.load(Ordering::Relaxed),
                        "total_bytes": transfer.here.total_bytes.load(Ordering::Relaxed),
                        "sent_bytes": transfer.here.sent_bytes.load(Ordering::Relaxed),
                    })
                })
                .collect();
            Some(
                json!({"started_ms": run.started_ms, "cause": cause, "verifies": cause.is_none(), "stopping": run.stop.load(Ordering::Relaxed), "transfers": transfers}),
            )
        };
        let job = |watched: &Watched| {
            json!({
                "job": watched.job.name, "due_ms": watched.due.at_ms, "why": watched.due.why.name(), "run": under_way(watched),
            })
        };
        json!({
            "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "started_ms": self.started_ms,
            "max_runs": self.config.max_runs, "jobs": self.jobs.iter().map(job).collect::<Vec<_>>(),
        })
    }

    /// What `systemctl status` shows.
    fn words(&self) -> String {
        let running: Vec<&str> = self.jobs.iter().filter(|watched| watched.under_way.is_some()).map(|watched| &*watched.job.name).collect();
        let next = self.jobs.iter().filter(|watched| watched.under_way.is_none());
        let next = next.filter_map(|watched| Some((watched.due.at_ms?, &*watched.job.name))).min();
        let mut words = format!("{} jobs", self.jobs.len());
        if !running.is_empty() {
            words += &format!(", running {}", running.join(", "));
        }
        if let Some((at_ms, name)) = next {
            let at = jiff::Timestamp::from_millisecond(i64::try_from(at_ms).unwrap_or(0)).unwrap_or_default();
            words += &format!(", next {name} at {}", self.zone.to_datetime(at).strftime("%F %T"));
        }
        words
    }
}
