//! A year on a fake clock: the agent goes down and comes back, runs are short, long, or fail, clocks are put. What
//! must hold is said in ticks and days, and not in terms of what `due` reckons with.

use super::{Due, View, Why, ms_of, next, skipped};
use crate::agent::book::{JobBook, LastRun};
use crate::agent::config::{AgentConfig, Job};
use crate::agent::outcome::{Cause, Failure};
use crate::schedule::testing::{berlin, time};
use crate::schedule::{Calendar, Window};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::sync::LazyLock;

pub const NIGHTLY: &str = "schedule = \"02:30\"";
pub const QUARTERS: &str = "schedule = \"*:0/15\"";

static BERLIN: LazyLock<TimeZone> = LazyLock::new(berlin);

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A job with these lines.
pub fn job(lines: &str) -> Job {
    let text = format!(
        "[[receiver]]\nname = \"dr1\"\naddress = \"dr1\"\n[[job]]\nname = \"db\"\nreceivers = [\"dr1\"]\nvolumes = [{{ source = \"vg0/db\", replica = \"db\" }}]\n{lines}\n"
    );
    AgentConfig::parse(&[("a.toml".to_owned(), text)]).expect("a configuration").jobs.remove(0)
}

/// What the clocks of Berlin show.
pub fn at(text: &str) -> u64 {
    ms_of(time(text))
}

pub fn view(now: &str, since: &str) -> View<'static> {
    View { now_ms: at(now), since_ms: at(since), zone: &BERLIN, host: 7, commit_ms: None }
}

/// A book of a job that ran once.
pub fn ran(from: &str, to: &str) -> JobBook {
    let last = LastRun { run_id: "run".into(), started_ms: at(from), finished_ms: at(to), failure: None };
    JobBook { last: Some(last), ..JobBook::default() }
}

/// A run of the year.
#[derive(Clone, Copy, Debug)]
struct Run {
    started: u64,
    finished: u64,
    /// On a clock that nobody puts.
    real: u64,
    cause: Cause,
}

/// A host with a clock, an agent, and one job.
struct World {
    job: Job,
    calendar: Option<Calendar>,
    book: JobBook,
    /// Milliseconds of a clock that nobody puts.
    real: u64,
    /// What the host's clock shows beyond that.
    offset: i64,
    since: u64,
    runs: Vec<Run>,
    chance: u64,
}

impl World {
    fn new(lines: &str, from: &str, seed: u64) -> World {
        let job = job(lines);
        let calendar = match &job.trigger {
            crate::agent::config::Trigger::Calendar(calendar) => Some(calendar.clone()),
            _ => None,
        };
        let start = at(from);
        let book = JobBook { scheduled_since_ms: Some(start), ..JobBook::default() };
        World { job, calendar, book, real: start, offset: 0, since: start, runs: Vec::new(), chance: seed.wrapping_mul(0x9e37_79b9) | 1 }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    fn now(&self) -> u64 {
        self.real.saturating_add_signed(self.offset)
    }

    fn view(&self) -> View<'static> {
        View { now_ms: self.now(), since_ms: self.since, zone: &BERLIN, host: 7, commit_ms: None }
    }

    fn due(&self) -> Due {
        next(&self.job, &self.book, &self.view())
    }

    /// The last tick up to an instant: which one a run answers.
    fn tick_before(&self, at_ms: u64) -> Timestamp {
        let calendar = self.calendar.as_ref().expect("a calendar");
        let end = super::stamp(at_ms);
        let next = |tick: &Timestamp| calendar.next_after(*tick, &BERLIN).filter(|next| *next <= end);
        let last = |back: u64| std::iter::successors(next(&super::stamp(at_ms - back)), next).last();
        last(HOUR).or_else(|| last(5 * DAY)).expect("a tick before the run")
    }

    /// Runs the job as the agent does.
    fn run(&mut self, cause: Cause, takes: u64, exit: u8) {
        let started = self.now();
        self.real += takes;
        let finished = self.now();
        let failure = (exit != 0).then(|| Failure { exit, message: "no".into() });
        self.book.failures = if exit == 0 { 0 } else { self.book.failures + 1 };
        self.book.served_ms = Some(started);
        self.book.last = Some(LastRun { run_id: self.real.to_string(), started_ms: started, finished_ms: finished, failure });
        self.book.skipped_ticks += skipped(&self.job, started, finished, &self.view());
        self.runs.push(Run { started, finished, real: self.real - takes, cause });
    }

    /// Lives until a moment of the clock that nobody puts, with runs as `what` has them.
    fn live(&mut self, until: u64, mut what: impl FnMut(&mut World) -> (u64, u8)) {
        while self.real < until {
            let due = self.due();
            if due.is_now(self.now()) {
                let (takes, exit) = what(self);
                self.run(due.cause, takes, exit);
                continue;
            }
            let wait = due.at_ms.map_or(DAY, |at| at - self.now());
            self.real = (self.real + wait).min(until);
        }
    }

    /// The clock is put, and the agent notices.
    fn put_clock(&mut self, by: i64) {
        self.offset += by;
        self.since = self.now();
    }

    /// The agent is not there for a while.
    fn down(&mut self, time: u64) {
        self.real += time;
        self.since = self.now();
    }
}

/// Scheduled runs answer ticks in their order, each one tick of its own.
fn check_one_run_for_a_tick(world: &World) {
    let scheduled = world.runs.iter().filter(|run| run.cause != Cause::Retry);
    let ticks: Vec<Timestamp> = scheduled.map(|run| world.tick_before(run.started)).collect();
    let wrong = ticks.windows(2).position(|pair| pair[1] <= pair[0]);
    assert!(wrong.is_none(), "two runs for {}", ticks[wrong.unwrap_or(0)]);
}

#[test]
fn a_year_of_nights_is_one_run_each() {
    for lines in [NIGHTLY, "schedule = \"02:30\"\nrandom_delay = \"20min\"", "cron = \"0 3 * * *\"", "schedule = \"daily\""] {
        let mut world = World::new(lines, "2026-01-01 00:00:01", 1);
        world.live(at("2027-01-01 00:00:01"), |_| (7 * MINUTE, 0));
        assert_eq!(world.runs.len(), 365, "{lines}");
        let days: std::collections::BTreeSet<_> =
            world.runs.iter().map(|run| BERLIN.to_datetime(super::stamp(run.started)).date()).collect();
        assert_eq!(days.len(), 365, "{lines}");
        assert!(world.runs.iter().all(|run| run.cause == Cause::Schedule) && world.book.skipped_ticks == 0);
        check_one_run_for_a_tick(&world);
    }
}

#[test]
fn a_year_of_quarters_loses_none_and_long_runs_count_what_they_skip() {
    let mut world = World::new(QUARTERS, "2026-01-01 00:00:01", 1);
    world.live(at("2027-01-01 00:00:01"), |_| (4 * MINUTE, 0));
    assert_eq!(world.runs.len(), 365 * 96);
    check_one_run_for_a_tick(&world);

    let mut world = World::new(QUARTERS, "2026-01-01 00:00:01", 2);
    world.live(at("2027-01-01 00:00:01"), |world| (world.roll(80) * MINUTE + 1, 0));
    // The last run may end in the next year.
    let quarters = (world.runs.last().unwrap().finished - at("2026-01-01 00:00")) / (15 * MINUTE);
    assert_eq!(world.runs.len() as u64 + world.book.skipped_ticks, quarters);
    check_one_run_for_a_tick(&world);
}

#[test]
fn whatever_happens_no_day_is_missed_and_no_tick_comes_twice() {
    for seed in 1..40 {
        let lines = [NIGHTLY, "schedule = \"02:30\"\nrandom_delay = \"3h\"", "schedule = \"2/6:15\"", "schedule = \"Mon..Sun 03:00\""];
        let mut world = World::new(lines[seed as usize % 4], "2026-01-01 12:00", seed);
        let end = at("2027-01-01 12:00");
        let mut downs = 0;
        while world.real < end {
            let up = world.roll(9 * DAY) + HOUR;
            let until = (world.real + up).min(end);
            world.live(until, |world| {
                let exit = [0, 0, 0, 4, 6, 1][world.roll(6) as usize];
                (world.roll(100) * MINUTE + SECOND, exit)
            });
            let down = world.roll(3 * DAY);
            world.down(down);
            downs += 1;
        }
        check_one_run_for_a_tick(&world);
        let catch_ups = world.runs.iter().filter(|run| run.cause == Cause::CatchUp).count();
        assert!(catch_ups <= downs, "seed {seed}: a burst: {catch_ups} catch-ups after {downs} times of being down");
        // No tick is left without a run that began after it, unless one was under way or the year ended first.
        let calendar = world.calendar.clone().unwrap();
        let mut tick = calendar.next_after(time("2026-01-01 12:00"), &BERLIN).unwrap();
        while ms_of(tick) < end - 4 * DAY {
            let answer = world.runs.iter().find(|run| run.started >= ms_of(tick));
            let under_way = world.runs.iter().any(|run| run.started < ms_of(tick) && run.finished >= ms_of(tick));
            let late = answer.map_or(u64::MAX, |run| run.started - ms_of(tick));
            // Down for three days at most, the delay, and a run that was in the way.
            assert!(late <= 3 * DAY + 8 * HOUR || under_way, "seed {seed}: {tick} has no run: {answer:?}");
            tick = calendar.next_after(tick, &BERLIN).unwrap();
        }
    }
}

#[test]
fn clocks_that_are_put_bring_no_burst_and_no_silence() {
    for seed in 1..60 {
        let lines = [NIGHTLY, QUARTERS, "every = \"1h\"", "schedule = \"hourly\"\nrandom_delay = \"10min\""][seed as usize % 4];
        let interval = [DAY, 15 * MINUTE, HOUR, HOUR][seed as usize % 4];
        let mut world = World::new(lines, "2026-01-01 12:00", seed);
        let (start, end) = (world.real, world.real + 60 * DAY);
        let mut jumps = vec![start];
        while world.real < end {
            let until = world.real + world.roll(4 * DAY) + interval;
            world.live(until, |_| (MINUTE, 0));
            // From the step of a time server to a clock whose battery is empty.
            let far = [10 * SECOND, 5 * MINUTE, 3 * HOUR, 2 * DAY, 2000 * DAY][world.roll(5) as usize];
            let by = (world.roll(far) + 1) as i64;
            let forwards = world.roll(2) == 0;
            world.put_clock(if forwards { by } else { -by });
            jumps.push(world.real);
        }
        let put = jumps.len() as u64 - 1;
        let most = (world.real - start) / interval + 2 * put + 2;
        assert!(world.runs.len() as u64 <= most, "seed {seed}: {} runs, {put} jumps", world.runs.len());
        for pair in world.runs.windows(2) {
            let jump = jumps.iter().copied().rfind(|jump| *jump <= pair[1].real).unwrap_or(start);
            let gap = pair[1].real - pair[0].real.max(jump);
            assert!(gap <= 2 * interval + HOUR + 10 * MINUTE, "seed {seed}: silent for {} min: {pair:?}", gap / MINUTE);
        }
        // After each jump at most one run comes early; never two of them.
        let early = |pair: &&[Run]| pair[1].real - pair[0].real < interval - interval / 4;
        assert!(world.runs.windows(2).filter(early).count() as u64 <= 2 * put, "seed {seed}");
    }
}

#[test]
fn a_receiver_that_is_away_for_a_day_is_tried_ever_more_seldom_and_found_again() {
    let mut world = World::new("schedule = \"02:30\"\nretry = { initial = \"30s\", max = \"30min\", jitter = 0.3 }", "2026-01-01 00:00", 3);
    let (away, back) = (at("2026-01-03 00:00"), at("2026-01-03 20:00"));
    world.live(at("2026-01-04 00:00"), |world| (SECOND, if (away..back).contains(&world.now()) { 4 } else { 0 }));
    let tried: Vec<u64> = world.runs.iter().map(|run| run.started).filter(|started| *started >= away).collect();
    assert!(tried.len() < 70, "{} tries", tried.len());
    assert!(tried.windows(2).all(|pair| pair[1] - pair[0] >= 21 * SECOND && pair[1] - pair[0] <= 30 * MINUTE + 2 * SECOND));
    assert!((back..back + 31 * MINUTE).contains(tried.last().unwrap()));
    assert_eq!(world.due().why, Why::Schedule);
}

#[test]
fn a_window_is_kept_all_year_also_by_retries() {
    let window: Window = toml::from_str("from = \"20:00\"\nto = \"06:00\"").unwrap();
    let mut world = World::new("schedule = \"*:0/30\"\nwindow = { from = \"20:00\", to = \"06:00\" }", "2026-01-01 12:00", 5);
    world.live(at("2027-01-01 12:00"), |world| (world.roll(90) * MINUTE + 1, [0, 4][world.roll(2) as usize]));
    assert!(world.runs.len() > 365 * 8);
    assert!(world.runs.iter().all(|run| window.is_open(super::stamp(run.started), &BERLIN)));
    let nights: std::collections::BTreeSet<_> =
        world.runs.iter().map(|run| BERLIN.to_datetime(super::stamp(run.started - 12 * HOUR)).date()).collect();
    assert_eq!(nights.len(), 365);
}
