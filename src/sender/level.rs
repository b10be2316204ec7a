//! Chooses how hard to compress while a pass runs, so that it ends soonest: `--compress auto`.
//!
//! The pass is as slow as the slowest of four: the disk that is read, this thread's CPU, the link, and a receiver
//! that cannot keep up. One thread does the reading, hashing, packing and sending, so where its time goes says which
//! it is: waiting for room to send, packing, or waiting for reads. From that the chooser knows what a megabyte of
//! the volume would cost at each level, and takes the cheapest.
//!
//! Pure: it is told what a window of the pass took, and answers with a level. Worked example, figures of one core
//! that packs 390 MB/s at level 1: a link of 1 Gbit/s blocks the sender at level 1 (it takes 118 MB/s packed, 320
//! of the volume); level 3 packs 280 MB/s, no faster; so level 1 stays. At 100 Mbit/s level 9 still packs more than
//! the link takes, and a pass ends sooner by a tenth. At 10 Gbit/s nothing blocks, packing is all the time there is,
//! and the blocks travel as they are.

use std::time::Duration;

/// A step of the ladder, told in relation to level 1: the saving and the CPU time (ext4 image of /usr, runs of 256 KiB).
struct Rung {
    level: Option<i32>,
    gain: f64,
    cost: f64,
}

const LADDER: [Rung; 6] = [
    Rung { level: None, gain: 0.0, cost: 0.0 },
    Rung { level: Some(-5), gain: 0.79, cost: 0.75 },
    Rung { level: Some(1), gain: 1.0, cost: 1.0 },
    Rung { level: Some(3), gain: 1.035, cost: 1.4 },
    Rung { level: Some(6), gain: 1.053, cost: 3.5 },
    Rung { level: Some(9), gain: 1.069, cost: 6.9 },
];

/// Where a pass begins, and what is tried now and then where nothing is packed.
const REFERENCE: usize = 2;

/// Share of a window spent waiting for a thing that makes that thing the bottleneck.
const WAITED: f64 = 0.1;
/// So much more time, or less, is no other time.
const SAME: f64 = 1.1;
/// A move has to promise this much less time.
const WORTH: f64 = 0.98;
/// Where this much less is promised, a move is not put off for long.
const URGENT: f64 = 0.7;
/// Windows to keep still before a lighter level is tried, doubled whenever that was a mistake.
const STILL_MIN: u32 = 1;
const STILL_MAX: u32 = 64;
/// The same for what is urgent.
const STILL_URGENT: u32 = 3;
/// Blocked windows before a lighter level is tried for a window, to see whether the link or the receiver blocks: doubled
/// whenever it was the link.
const QUESTION_MIN: u32 = 2;
const QUESTION_MAX: u32 = 256;
/// Bytes on the wire before a lighter level is believed in: the first ones vanish in buffers without ever blocking.
const SETTLE_BYTES: u64 = 16 << 20;
/// How much faster than it was seen to be a link is hoped to be by now, whenever it is asked again.
const HOPE: f64 = 2.0 / 3.0;
/// What a second of CPU costs beside a second of the pass: among equals the lighter level is taken.
const CPU_PRICE: f64 = 0.05;
/// Seconds that a byte on the wire costs beside the pass: what is free anyway (CPU while a disk is slow) saves the link.
const WIRE_PRICE: f64 = 0.5e-9;

/// What held a window up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// This thread: packing, hashing, encrypting.
    Cpu,
    /// The disk that is read.
    Source,
    /// The link takes no more.
    Link,
    /// The receiver takes no more, however few bytes they are on the wire.
    Receiver,
}

impl Bottleneck {
    /// All of them.
    pub const ALL: [Bottleneck; 4] = [Bottleneck::Cpu, Bottleneck::Source, Bottleneck::Link, Bottleneck::Receiver];

    /// The word in summaries.
    pub fn word(self) -> &'static str {
        match self {
            Bottleneck::Cpu => "cpu",
            Bottleneck::Source => "source",
            Bottleneck::Link => "link",
            Bottleneck::Receiver => "receiver",
        }
    }
}

/// What a part of the pass took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Bytes of changed blocks.
    pub plain_bytes: u64,
    /// What they were on the wire.
    pub wire_bytes: u64,
    /// Of the plain bytes, those that zstd was given, and what was left of them.
    pub tried_bytes: u64,
    /// See `tried_bytes`.
    pub packed_bytes: u64,
    /// All of the time.
    pub elapsed: Duration,
    /// Of it, in zstd.
    pub packing: Duration,
    /// Of it, waiting for room to send.
    pub sending: Duration,
    /// Of it, waiting for reads.
    pub reading: Duration,
}

/// What was seen in the window before.
#[derive(Clone, Copy, Debug)]
struct Seen {
    blocked: bool,
    /// The disk was waited for.
    read: bool,
    /// Seconds for a plain byte, and bytes on the wire for one.
    time: f64,
    ratio: f64,
}

/// Chooses the level of the next window.
#[derive(Debug)]
pub struct Chooser {
    rung: usize,
    /// Part that level 1 saves, and seconds of CPU that a byte takes there. `None` until zstd was tried.
    packing: Option<(f64, f64)>,
    /// Seconds that a byte on the wire takes, as far as it was ever felt.
    link: Option<f64>,
    /// Who blocks is the receiver, not the link; and the seconds that a plain byte takes it.
    receiver: Option<f64>,
    /// Seconds that a byte on the wire takes the link for certain: it blocked where the receiver would not have.
    proven: Option<f64>,
    /// A move showed that it is the link that blocks; one showed nothing.
    linked: bool,
    vague: bool,
    /// The last window that counted, and whether a move lies between it and the next.
    before: Option<Seen>,
    moved: bool,
    /// The window under way began with a move: what lay in buffers then distorts it.
    turning: bool,
    upwards: Option<bool>,
    sent_bytes: u64,
    /// Windows since the last move or hope, and how many of them it has to be.
    still: u32,
    patience: u32,
    /// Windows that were blocked since the last question who blocks, and how many of them it has to be.
    blocked: u32,
    question: u32,
    moves: u32,
}

impl Default for Chooser {
    fn default() -> Chooser {
        Chooser {
            rung: REFERENCE,
            packing: None,
            link: None,
            receiver: None,
            proven: None,
            linked: false,
            vague: false,
            before: None,
            moved: false,
            turning: false,
            upwards: None,
            sent_bytes: 0,
            still: 0,
            patience: STILL_MIN,
            blocked: 0,
            question: QUESTION_MIN,
            moves: 0,
        }
    }
}

impl Chooser {
    /// The level to pack with. `None`: not at all.
    pub fn level(&self) -> Option<i32> {
        LADDER[self.rung].level
    }

    /// The level that is tried now and then where nothing is packed, so that it is known what packing would do.
    pub fn reference() -> Option<i32> {
        LADDER[REFERENCE].level
    }

    /// How often the level changed.
    pub fn moves(&self) -> u32 {
        self.moves
    }

    /// Learns from a window, and may choose another level. Says what held the window up.
    pub fn window(&mut self, window: &Window) -> Bottleneck {
        let elapsed = window.elapsed.as_secs_f64();
        if window.plain_bytes == 0 || elapsed <= 0.0 {
            return Bottleneck::Source;
        }
        let plain = window.plain_bytes as f64;
        let share = |part: Duration| part.as_secs_f64() / elapsed;
        let seen = Seen {
            blocked: share(window.sending) >= WAITED,
            read: share(window.reading) >= WAITED,
            time: elapsed / plain,
            ratio: window.wire_bytes as f64 / plain,
        };
        self.sent_bytes += window.wire_bytes;
        self.learn_packing(window);
        let turned = std::mem::take(&mut self.turning);
        if !turned {
            self.learn_link(seen);
        }
        let busy = (elapsed - (window.sending + window.reading + window.packing).as_secs_f64()).max(0.0) / plain;
        let disk = if !seen.blocked && seen.read { seen.time } else { 0.0 };
        if !turned {
            self.before = Some(seen);
            self.still = self.still.saturating_add(1);
            if !self.ask() {
                self.choose(seen, busy, disk);
            }
        }
        match seen.blocked {
            true if self.receiver.is_some() => Bottleneck::Receiver,
            true => Bottleneck::Link,
            false if disk > 0.0 => Bottleneck::Source,
            false => Bottleneck::Cpu,
        }
    }

    fn learn_packing(&mut self, window: &Window) {
        if window.tried_bytes == 0 {
            return;
        }
        let rung = &LADDER[if self.rung == 0 { REFERENCE } else { self.rung }];
        let tried = window.tried_bytes as f64;
        let now = ((1.0 - window.packed_bytes as f64 / tried) / rung.gain, window.packing.as_secs_f64() / tried / rung.cost);
        self.packing = Some(self.packing.map_or(now, |old| ((old.0 + now.0) / 2.0, (old.1 + now.1) / 2.0)));
    }

    /// Whoever blocks is told by what a move did: a link goes by bytes on the wire, a receiver by what they unpack to.
    fn learn_link(&mut self, seen: Seen) {
        let steady = |seen: &Seen| seen.blocked && !seen.read;
        if let Some(before) = self.before.filter(|before| std::mem::take(&mut self.moved) && steady(before) && steady(&seen)) {
            let by_link = seen.ratio * before.time / before.ratio;
            if (by_link / before.time).ln().abs() > 0.1 {
                let (same, other) = (seen.time / before.time, seen.time / by_link);
                let same = same.ln().abs() < SAME.ln().min(other.ln().abs());
                self.receiver = same.then(|| self.receiver.unwrap_or(before.time.max(seen.time)));
                self.linked = !same;
                if !same {
                    if seen.ratio > before.ratio {
                        self.proven = Some(seen.time / seen.ratio);
                    }
                    self.question = (self.question * 2).min(QUESTION_MAX);
                }
            } else {
                // On this data the two levels are alike.
                self.vague = true;
                self.question = (self.question * 2).min(QUESTION_MAX);
            }
        }
        // What a lighter level did may be felt a window late: buffers had to fill first.
        if self.receiver.is_some_and(|time| steady(&seen) && seen.time >= SAME * time) {
            self.receiver = None;
            self.proven = Some(seen.time / seen.ratio);
            self.question = (self.question * 2).min(QUESTION_MAX);
        }
        let felt = seen.time / seen.ratio;
        self.proven = self.proven.map(|proven| proven.min(felt));
        self.link = match self.link {
            _ if self.receiver.is_some() && seen.blocked => None,
            Some(link) if seen.blocked => Some((link + felt) / 2.0),
            None if seen.blocked => Some(felt),
            // It carried that much without blocking.
            link => link.map(|link| link.min(felt)),
        };
        self.blocked = if steady(&seen) { self.blocked + 1 } else { 0 };
    }

    /// Asks who blocks, with a level at which the two differ. Whether it did.
    fn ask(&mut self) -> bool {
        let differs = self.packing.is_some_and(|(shrink, _)| shrink > WAITED) && self.rung > 0;
        if self.receiver.is_some() || !differs || self.blocked < self.question {
            return false;
        }
        self.blocked = 0;
        self.go(if self.vague { 0 } else { self.rung.min(REFERENCE) - 1 });
        true
    }

    fn go(&mut self, rung: usize) {
        self.upwards = Some(rung > self.rung);
        self.rung = rung;
        self.moves += 1;
        (self.moved, self.turning) = (true, true);
        self.still = 0;
    }

    fn choose(&mut self, seen: Seen, busy: f64, disk: f64) {
        let Some((shrink, cost)) = self.packing else { return };
        if !seen.blocked && self.still >= self.patience && self.link.is_some() {
            self.link = self.link.map(|link| link * HOPE);
            self.still = 0;
        }
        let price = |rung: &Rung| {
            let ratio = 1.0 - (shrink * rung.gain).clamp(0.0, 1.0);
            let packing = cost * rung.cost;
            if let Some(time) = self.receiver.filter(|_| seen.blocked) {
                // It is waited for at every level at which the link does not block: the least work for both is best.
                let by_link = ratio * self.proven.unwrap_or(0.0) > SAME * time;
                return if by_link { f64::MAX } else { packing };
            }
            (busy + packing).max(ratio * self.link.unwrap_or(0.0)).max(disk) + CPU_PRICE * packing + WIRE_PRICE * ratio
        };
        let now = price(&LADDER[self.rung]);
        let best = (0..LADDER.len()).map(|rung| (rung, price(&LADDER[rung]))).min_by(|one, other| one.1.total_cmp(&other.1));
        // A level above the first one is for links alone, and who blocks may be the receiver, which shares no CPU to waste.
        let best =
            best.map(|(rung, then)| if !self.linked && rung > REFERENCE { (REFERENCE, price(&LADDER[REFERENCE])) } else { (rung, then) });
        let Some((best, then)) = best.filter(|(rung, then)| *rung != self.rung && *then < WORTH * now) else { return };
        let upwards = best > self.rung;
        // A link that blocks is felt and soon answered; that it would take more is a hope. One that was just expressed
        // (`still` is zero) is to be acted upon.
        let patience = if upwards { self.patience / 8 } else { self.patience };
        let patience = if then < URGENT * now { patience.min(STILL_URGENT) } else { patience };
        let waited = self.still == 0 || self.still >= patience;
        if !waited || (!upwards && self.sent_bytes < SETTLE_BYTES) {
            return;
        }
        if upwards && self.upwards == Some(false) {
            self.patience = (self.patience * 2).min(STILL_MAX);
        }
        self.go(best);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 256 << 10;

    /// What surrounds a pass: bytes a second, and what packing does to the data.
    #[derive(Clone, Copy, Debug)]
    struct World {
        link: f64,
        disk: f64,
        receiver: f64,
        /// Level 1, of one core; and what it leaves.
        packs: f64,
        ratio: f64,
    }

    const GBIT: f64 = 1.25e8;
    const FAST: World = World { link: 1e3 * GBIT, disk: 1e11, receiver: 1e11, packs: 390e6, ratio: 0.366 };
    /// Hashing, copying and encrypting, of one core.
    const BUSY: f64 = 1.0 / 1.2e9;
    /// Our buffers and the kernel's.
    const QUEUE: f64 = 6e6;

    struct Sim {
        now: f64,
        read_at: f64,
        link_at: f64,
        receiver_at: f64,
        window: Window,
        began: f64,
        runs: u64,
    }

    impl Sim {
        fn new() -> Sim {
            Sim { now: 0.0, read_at: 0.0, link_at: 0.0, receiver_at: 0.0, window: Window::default(), began: 0.0, runs: 0 }
        }

        /// One run of blocks through the line at this rung; `tried`: zstd looks at it whatever the rung.
        fn run(&mut self, world: &World, rung: usize) {
            let plain = RUN as f64;
            self.read_at += plain / world.disk;
            let read = (self.read_at - self.now).max(0.0);
            self.runs += 1;
            let at = if rung == 0 && self.runs.is_multiple_of(64) { REFERENCE } else { rung };
            // The world's levels are not quite those of the table.
            let cost = LADDER[at].cost.powf(1.1) * plain / world.packs;
            let ratio = 1.0 - (1.0 - world.ratio) * LADDER[at].gain.powf(0.9);
            let (cost, ratio) = if world.ratio < 1.0 { (cost, ratio) } else { (plain / 3.5e9 * f64::from(at > 0), 1.0) };
            self.now += read + cost + BUSY * plain;
            let wire = plain * ratio;
            self.link_at = self.link_at.max(self.now) + wire / world.link;
            self.receiver_at = self.receiver_at.max(self.link_at) + plain / world.receiver;
            let behind = (self.receiver_at - self.now) - QUEUE / world.link.min(world.receiver * ratio);
            let blocked = behind.max(0.0);
            self.now += blocked;
            let seconds = Duration::from_secs_f64;
            self.window.plain_bytes += RUN;
            self.window.wire_bytes += wire as u64;
            self.window.sending += seconds(blocked);
            self.window.reading += seconds(read);
            if at > 0 {
                self.window.tried_bytes += RUN;
                self.window.packed_bytes += wire as u64;
                self.window.packing += seconds(cost);
            }
        }

        fn adapt(&mut self, chooser: &mut Chooser) -> Option<Bottleneck> {
            self.window.elapsed = Duration::from_secs_f64(self.now - self.began);
            if self.window.plain_bytes < 8 << 20 || self.window.elapsed < Duration::from_millis(250) {
                return None;
            }
            let held = chooser.window(&self.window);
            (self.window, self.began) = (Window::default(), self.now);
            Some(held)
        }
    }

    const BYTES: u64 = 8 << 30;

    fn fixed(world: &World, rung: usize) -> f64 {
        let mut sim = Sim::new();
        (0..BYTES / RUN).for_each(|_| sim.run(world, rung));
        sim.now
    }

    fn adaptive(world: &World) -> (f64, Chooser, Option<Bottleneck>) {
        let (mut sim, mut chooser, mut held) = (Sim::new(), Chooser::default(), None);
        for _ in 0..BYTES / RUN {
            sim.run(world, chooser.rung);
            held = sim.adapt(&mut chooser).or(held);
        }
        (sim.now, chooser, held)
    }

    #[test]
    fn each_bottleneck_gets_the_level_that_ends_the_pass_soonest() {
        let worlds = [
            ("10 Mbit/s", World { link: GBIT / 100.0, ..FAST }, vec![Some(9)], Bottleneck::Link),
            ("100 Mbit/s", World { link: GBIT / 10.0, ..FAST }, vec![Some(6), Some(9)], Bottleneck::Link),
            ("400 Mbit/s", World { link: 0.4 * GBIT, ..FAST }, vec![Some(3)], Bottleneck::Link),
            ("1 Gbit/s", World { link: GBIT, ..FAST }, vec![Some(1)], Bottleneck::Cpu),
            ("10 Gbit/s", World { link: 10.0 * GBIT, ..FAST }, vec![None], Bottleneck::Cpu),
            ("100 Gbit/s", World { link: 100.0 * GBIT, ..FAST }, vec![None], Bottleneck::Cpu),
            ("a slow disk", World { disk: 100e6, link: 10.0 * GBIT, ..FAST }, vec![Some(1)], Bottleneck::Source),
            ("a slow disk before a slow link", World { disk: 100e6, link: GBIT / 10.0, ..FAST }, vec![Some(6), Some(9)], Bottleneck::Link),
            ("a slow receiver", World { receiver: 150e6, link: 10.0 * GBIT, ..FAST }, vec![None], Bottleneck::Receiver),
        ];
        for (name, world, levels, bottleneck) in worlds {
            let (_, chooser, held) = adaptive(&world);
            assert!(levels.contains(&chooser.level()), "{name}: level {:?}: {chooser:?}", chooser.level());
            assert_eq!(held, Some(bottleneck), "{name}: {chooser:?}");
        }
    }

    /// Whatever the world, no fixed level would have been much better, and the level does not wander.
    #[test]
    fn no_fixed_level_beats_the_chooser_by_much_and_it_does_not_oscillate() {
        for link in [0.01, 0.1, 0.3, 0.6, 1.5, 4.0, 10.0] {
            for disk in [60e6, 200e6, 1.5e9] {
                for receiver in [150e6, 450e6, 1e11] {
                    for (packs, ratio) in [(390e6, 0.366), (150e6, 0.5), (900e6, 0.15), (390e6, 1.0)] {
                        let world = World { link: link * GBIT, disk, receiver, packs, ratio };
                        let (took, chooser, _) = adaptive(&world);
                        let best = (0..LADDER.len()).map(|rung| fixed(&world, rung)).fold(f64::MAX, f64::min);
                        assert!(took < 1.15 * best + 2.0, "{took:.1} s, at best {best:.1} s: {world:?} {chooser:?}");
                        assert!(chooser.moves() <= 64, "{} moves: {world:?} {chooser:?}", chooser.moves());
                    }
                }
            }
        }
    }

    #[test]
    fn a_link_that_changes_and_data_that_changes_are_followed() {
        let (mut sim, mut chooser) = (Sim::new(), Chooser::default());
        let mut stage = |world: World, bytes: u64, levels: &[Option<i32>]| {
            let mut wanted = 0;
            for at in 0..bytes / RUN {
                sim.run(&world, chooser.rung);
                sim.adapt(&mut chooser);
                wanted += u64::from(at > bytes / RUN / 2 && levels.contains(&chooser.level()));
            }
            // The rest are windows in which something was asked.
            assert!(wanted > bytes / RUN * 4 / 10, "{wanted} of {} in {world:?}: {chooser:?}", bytes / RUN);
        };
        let (slow, noise) = (World { link: GBIT / 20.0, ..FAST }, World { ratio: 1.0, ..FAST });
        stage(FAST, 4 << 30, &[None]);
        stage(slow, 1 << 30, &[Some(6), Some(9)]);
        stage(FAST, 16 << 30, &[None]);
        stage(noise, 4 << 30, &[None]);
        stage(World { link: GBIT / 20.0, ..noise }, 1 << 30, &[None, Some(-5), Some(1), Some(3), Some(6), Some(9)]);
        stage(slow, 1 << 30, &[Some(6), Some(9)]);
    }

    #[test]
    fn a_small_pass_keeps_the_level_it_began_with() {
        let mut chooser = Chooser::default();
        assert_eq!(chooser.level(), Some(1));
        assert_eq!(chooser.window(&Window::default()), Bottleneck::Source);
        let second = Duration::from_secs(1);
        let small = Window {
            plain_bytes: 9 << 20,
            wire_bytes: 3 << 20,
            tried_bytes: 9 << 20,
            packed_bytes: 3 << 20,
            elapsed: second,
            packing: second,
            ..Window::default()
        };
        assert_eq!(chooser.window(&small), Bottleneck::Cpu);
        assert_eq!((chooser.level(), chooser.moves()), (Some(1), 0));
    }
}
