//! Several connections of one session, against a real receiver: what they bring is what one brings, whatever dies, and a
//! peer who lies on them gets an error and nothing else.

#[path = "rig/receiver.rs"]
mod receiver;

use blockferry::attempt::own_key;
use blockferry::digest::{Algorithm, Digest, Hasher, SECRET_BYTES};
use blockferry::error::{Error, Kind, Result};
use blockferry::extent::{ExtentIndex, Geometry};
use blockferry::format::lane::{JOINED, Join, PieceHead};
use blockferry::format::stream::{self, Begin, DataTable, Encoding, Hello, LaneOffer, Message, Purpose};
use blockferry::limits::{HANDSHAKE_TIMEOUT, LANES_FROM_BYTES, STOP_POLL, TRANSPORT_BUFFER_BYTES};
use blockferry::ring::{AlignedBuf, Choice};
use blockferry::transport::tls::{self, Protocol, Raw, Tls};
use blockferry::transport::{Inbox, Lanes, Transport, Turn, Wire, tcp};
use receiver::{Agent, Receiver, end};
use std::fs;
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use uuid::Uuid;

const BOTH: &str = "\"push\", \"verify\"";
const MIB: usize = 1 << 20;
/// What takes longer hangs, also on a busy machine.
const HANGS: Duration = Duration::from_secs(60);

/// Bytes that nothing shrinks.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| word()).collect()
}

/// An agent, a receiver that serves `db` and, to liars, `web`; and a volume of noise.
struct Stage {
    agent: Agent,
    receiver: Receiver,
    image: PathBuf,
}

impl Stage {
    fn new(settings: &str, mebibytes: usize) -> Stage {
        let agent = Agent::new();
        let receiver = Receiver::start(&["db", "web"], &format!("{settings}\n{}", agent.entry("prod1", "*", BOTH)));
        let image = agent.folder.path().join("volume");
        fs::write(&image, noise(1, mebibytes * MIB)).unwrap();
        Stage { agent, receiver, image }
    }

    fn clone(&self, more: &[&str]) -> (Option<i32>, String) {
        end(&self.agent.pass("clone", &self.image, &self.receiver, "db", &[&["-v"], more].concat()))
    }

    /// Overwrites this much of the volume.
    fn change(&self, seed: u64, at: usize, bytes: usize) {
        let mut content = fs::read(&self.image).unwrap();
        content[at..at + bytes].copy_from_slice(&noise(seed, bytes));
        fs::write(&self.image, content).unwrap();
    }

    fn is_same(&self) {
        assert!(fs::read(&self.image).unwrap() == fs::read(self.receiver.image("db")).unwrap(), "{}", self.receiver.log());
    }

    /// A run of several connections that is slow enough to be met in the middle: of 40 MiB, it goes over them after eight
    /// seconds and has half a minute left.
    fn start_slowly(&self) -> receiver::Running {
        let more = ["-v", "--connections", "3", "--compress", "none", "--bandwidth", "1MiB/s"];
        let mut run = self.agent.start_pass("clone", &self.image, &self.receiver, "db", &more);
        // Beside the daemon's own: one for the session, and one for each connection beside it.
        wait_until("the run goes over its connections", || self.receiver.threads() >= 5 || run.is_over());
        std::thread::sleep(Duration::from_secs(1));
        assert!(!run.is_over(), "the run was over too soon to prove anything:\n{}", self.receiver.log());
        run
    }

    fn sessions_over(&self) -> usize {
        self.receiver.log().matches("session client=").count()
    }
}

fn interrupt(run: &receiver::Running) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.process() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < HANGS, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_comes_over_several_connections_is_what_comes_over_one() {
    let stage = Stage::new("", 40);
    let several = ["--connections", "3"];
    for (seed, compress) in [(7, "none"), (8, "1")] {
        let (code, said) = stage.clone(&[&several[..], &["--compress", compress, "--resync"]].concat());
        assert!(code == Some(0), "{said}");
        stage.is_same();
        fs::write(&stage.image, noise(seed, 40 * MIB)).unwrap();
    }
    // Through the journal; slowly enough for the connections to be there before the end is.
    let slowly = ["--shards", "2", "--bandwidth", "2MiB/s"];
    let (code, said) = stage.clone(&[&several[..], &slowly].concat());
    assert!(code == Some(0) && said.contains("goes over 3 connections from now on"), "{said}");
    stage.is_same();
    // What is over in a moment opens none.
    stage.change(9, 5 * MIB, LANES_FROM_BYTES as usize / 2);
    let (code, said) = stage.clone(&several);
    assert!(code == Some(0) && !said.contains("goes over"), "{said}");
    stage.is_same();
    // As many connections as shards, where those were asked for.
    stage.change(11, 3 * MIB, 30 * MIB);
    let (code, said) = stage.clone(&slowly);
    assert!(code == Some(0) && said.contains("goes over 2 connections from now on"), "{said}");
    stage.is_same();
    wait_until("the lanes' threads are gone", || stage.receiver.threads() <= 2);
}

#[test]
fn a_receiver_that_gives_fewer_connections_or_none_is_gone_on_with() {
    for (settings, asked, words) in [
        ("connections_max = 0", "4", "takes one connection of a session only: 4 were asked for"),
        ("connections_max = 2", "4", "takes 2 connections of a session at most: 4 were asked for"),
    ] {
        let stage = Stage::new(settings, 16);
        let (code, said) = stage.clone(&["--connections", asked]);
        assert!(code == Some(0) && said.contains(words), "{said}");
        stage.is_same();
    }
    // One that has given what it has to others. Its refusals are heard while there is something to send.
    let stage = Stage::new("connections_max = 2", 16);
    let _others = stage.spread();
    let (code, said) = stage.clone(&["--connections", "2", "--bandwidth", "1MiB/s"]);
    assert!(code == Some(0) && said.contains("0 further connections") && said.contains("takes no further connection"), "{said}");
    stage.is_same();
}

#[test]
fn a_receiver_that_dies_and_a_sender_that_dies_leave_what_came() {
    let mut stage = Stage::new("", 40);
    let run = stage.start_slowly();
    stage.receiver.kill();
    let (code, said) = end(&run.wait());
    assert_eq!(code, Some(4), "{said}");
    stage.receiver.restart_here("");
    // As much again, so that the next run is long enough to be met, too.
    fs::write(&stage.image, noise(3, 40 * MIB)).unwrap();
    let run = stage.start_slowly();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.process() as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    drop(run);
    // What the sender had not read yet turns the end of its connections into a reset.
    let is_cut = |log: &str| log.contains("without a goodbye") || log.contains("lost while");
    wait_until("the session of the dead sender ends", || is_cut(&stage.receiver.log()));
    let (code, said) = stage.clone(&["--connections", "4"]);
    assert_eq!(code, Some(0), "{said}");
    stage.is_same();
}

#[test]
fn a_sender_that_is_stopped_ends_and_goes_on_later() {
    let stage = Stage::new("", 40);
    let run = stage.start_slowly();
    interrupt(&run);
    let begun = Instant::now();
    let (code, said) = end(&run.wait());
    assert!(code == Some(130) && begun.elapsed() < HANGS, "{:?} {said}", begun.elapsed());
    stage.receiver.wait_for("result=failed");
    let (code, said) = stage.clone(&["--connections", "2"]);
    assert_eq!(code, Some(0), "{said}");
    stage.is_same();
}

/// The words wait behind what is on its way, and not for long: where the receiver stands still just then it is not told.
/// So one of a few tries has to tell it.
#[test]
fn a_sender_that_is_stopped_says_so_where_nothing_holds_it_up() {
    const VOLUME: usize = 160;
    let stage = Stage::new("", VOLUME);
    let is_told = |seed| {
        fs::write(&stage.image, noise(seed, VOLUME * MIB)).unwrap();
        let before = stage.sessions_over();
        let more = ["--connections", "8", "--compress", "12"];
        let mut run = stage.agent.start_pass("clone", &stage.image, &stage.receiver, "db", &more);
        wait_until("the run goes over its connections", || stage.receiver.threads() >= 10 || run.is_over());
        let met = !run.is_over();
        if met {
            interrupt(&run);
        }
        let (code, said) = end(&run.wait());
        // The signal may find it at its end.
        assert!(code == Some(0) || met && code == Some(130), "{code:?} {said}");
        wait_until("its session is over", || stage.sessions_over() > before && stage.receiver.threads() <= 2);
        let log = stage.receiver.log();
        assert!(code == Some(0) || log.contains("result=failed"), "{log}");
        log.contains("stopped by a signal")
    };
    assert!((2..9).any(is_told), "{}", stage.receiver.log());
    let (code, said) = stage.clone(&["--connections", "2"]);
    assert_eq!(code, Some(0), "{said}");
    stage.is_same();
}

#[test]
fn who_is_to_stop_waits_for_no_limit_of_his_own() {
    let stage = Stage::new("", 40);
    let more = ["--connections", "8", "--compress", "none", "--bandwidth", "512KiB/s"];
    let mut run = stage.agent.start_pass("clone", &stage.image, &stage.receiver, "db", &more);
    wait_until("the run goes over its connections", || stage.receiver.threads() >= 10 || run.is_over());
    std::thread::sleep(Duration::from_secs(1));
    assert!(!run.is_over(), "{}", stage.receiver.log());
    interrupt(&run);
    let begun = Instant::now();
    let (code, said) = end(&run.wait());
    // What lies in its buffers would take more than forty seconds.
    assert!(code == Some(130) && begun.elapsed() < Duration::from_secs(30), "{:?} {said}", begun.elapsed());
}

#[test]
fn a_receiver_that_is_stopped_ends_its_sessions_and_the_next_run_goes_on() {
    let mut stage = Stage::new("", 40);
    let run = stage.start_slowly();
    assert_eq!(stage.receiver.stop(), Some(0), "{}", stage.receiver.log());
    let (code, said) = end(&run.wait());
    assert_eq!(code, Some(4), "{said}");
    stage.receiver.restart_here("");
    let (code, said) = stage.clone(&["--connections", "16", "--io", "blocking"]);
    assert_eq!(code, Some(0), "{said}");
    stage.is_same();
}

/// A frame that fits no buffer once made each lane's buffer as large as itself, one after the other.
#[test]
fn extents_larger_than_a_buffer_arrive_whole_and_cost_no_memory_for_each_connection() {
    let stage = Stage::new("", 160);
    // Slowly enough for all of them to be there long before the end is.
    let more = ["--connections", "16", "--extent-size", "4M", "--compress", "none", "--bandwidth", "8MiB/s"];
    let (code, said) = stage.clone(&more);
    assert!(code == Some(0) && said.contains("goes over 16 connections"), "{said}");
    stage.is_same();
    let status = fs::read_to_string(format!("/proc/{}/status", stage.receiver.process())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    let peak: usize = peak.parse().unwrap();
    // Sixteen connections of up to 4 MiB, and a session.
    assert!(peak < 90 << 10, "{peak} KiB");
}

#[test]
fn a_client_that_is_revoked_loses_all_of_its_connections() {
    let stage = Stage::new("", 40);
    let run = stage.start_slowly();
    stage.receiver.reconfigure(&["db", "web"], "");
    let (code, said) = end(&run.wait());
    // For the sender it is a cut: its next try is told.
    assert_eq!(code, Some(4), "{said}");
    stage.receiver.wait_for("its rights were taken away");
    wait_until("the lanes' threads are gone", || stage.receiver.threads() <= 2);
}

#[test]
fn a_limit_holds_for_all_connections_together() {
    let stage = Stage::new("", 24);
    let begun = Instant::now();
    let (code, said) = stage.clone(&["--connections", "4", "--compress", "none", "--bandwidth", "2MiB/s"]);
    assert!(code == Some(0) && said.contains("goes over 4 connections"), "{said}");
    // Twelve seconds, less a burst of a tenth of a second and the last piece of each connection, for which nobody waits. Where
    // each had the limit for itself it would be six.
    assert!(begun.elapsed() > Duration::from_secs(9), "{:?}", begun.elapsed());
    stage.is_same();
}

// ---------------------------------------------------------------------------------------------
// Liars

const EXTENT: usize = 64 << 10;
const EXTENTS: usize = 16;

/// A connection that keeps what it is offered, and counts what it hears.
struct Catching {
    tls: Tls,
    offer: Arc<Mutex<Option<LaneOffer>>>,
    heard: Arc<AtomicUsize>,
}

impl Lanes for Catching {
    fn offered(&mut self, offer: LaneOffer) -> Result<()> {
        *self.offer.lock().unwrap() = Some(offer);
        Ok(())
    }
}

impl Transport for Catching {
    fn peer(&self) -> &str {
        self.tls.peer()
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        self.tls.outgoing()
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        self.tls.send(buffer, bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.tls.flush()
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        let turn = self.tls.turn(inbox, limit)?;
        if let Turn::Received(bytes) = turn {
            self.heard.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(turn)
    }

    fn lanes(&mut self) -> Option<&mut dyn Lanes> {
        Some(self)
    }
}

/// A connection and a handle to cut it by.
fn connect(agent: &Agent, receiver: &Receiver, protocol: Protocol) -> Result<(Tls, TcpStream)> {
    let socket = tcp::connect(&receiver.address, HANDSHAKE_TIMEOUT, &Default::default())?;
    let stop = Default::default();
    let raw = Raw { socket, peer: "the receiver".into(), limit: HANDSHAKE_TIMEOUT, choice: Choice::Blocking, stop };
    let handle = raw.socket.try_clone().unwrap();
    tls::connect(raw, &own_key(&agent.state)?, receiver.pin, protocol).map(|tls| (tls, handle))
}

/// A lane, where the receiver takes it.
fn lane(agent: &Agent, receiver: &Receiver, offer: &LaneOffer) -> Result<(Tls, TcpStream)> {
    let (mut tls, handle) = connect(agent, receiver, Protocol::Lane)?;
    tls.send_both(&Join { token: offer.token }.encode(), &[])?;
    let mut answer = [0];
    loop {
        match tls.turn_into(&mut answer, STOP_POLL)? {
            Turn::Received(1) if answer == [JOINED] => return Ok((tls, handle)),
            Turn::Received(_) | Turn::Closed => return Err(Error::new(Kind::Transient, "not taken")),
            _ => {}
        }
    }
}

fn hello() -> Hello {
    Hello {
        purpose: Purpose::Replicate,
        overwrite: false,
        rehash: false,
        relationship: Uuid::from_u128(7),
        epoch: Uuid::from_u128(8),
        generation: 0,
        root: Digest::UNKNOWN,
        volume_bytes: (EXTENT * EXTENTS) as u64,
        extent_bytes: EXTENT as u32,
        algorithm: Algorithm::Xxh3,
        secret: [5; SECRET_BYTES],
        target: "web".to_owned(),
        source: "a liar".to_owned(),
    }
}

/// A whole extent, all of one byte.
fn data(extent: u64) -> Vec<u8> {
    frame(extent, Encoding::Stored)
}

fn frame(extent: u64, encoding: Encoding) -> Vec<u8> {
    let hello = hello();
    let geometry = Geometry::new(hello.volume_bytes, hello.extent_bytes).unwrap();
    let content = vec![extent as u8 + 1; EXTENT];
    let digest = Hasher::new(hello.algorithm, &hello.secret).extent(&content, &mut Vec::new());
    let mut table = DataTable::new(&geometry);
    table.push(ExtentIndex(extent), &digest, &[0xff; 2]);
    let payload = if encoding == Encoding::Zstd { zstd::bulk::compress(&content, 1).unwrap() } else { content };
    let mut frame = vec![0; table.payload_at() + payload.len()];
    frame[table.payload_at()..].copy_from_slice(&payload);
    table.write(&mut frame, EXTENT, payload.len(), encoding, true);
    frame
}

impl Stage {
    /// A session that has begun its pass, and what it was offered.
    fn session(&self) -> (Wire, LaneOffer) {
        let (wire, offer, _) = self.session_and_what_is_heard();
        (wire, offer)
    }

    /// The same, and how many bytes it hears.
    fn session_and_what_is_heard(&self) -> (Wire, LaneOffer, Arc<AtomicUsize>) {
        let offer = Arc::<Mutex<Option<LaneOffer>>>::default();
        let heard = Arc::<AtomicUsize>::default();
        let (tls, _) = connect(&self.agent, &self.receiver, Protocol::Session).unwrap();
        let mut wire = Wire::new(Box::new(Catching { tls, offer: Arc::clone(&offer), heard: Arc::clone(&heard) })).unwrap();
        wire.greet().unwrap();
        wire.say(&Message::Hello(Box::new(hello()))).unwrap();
        let Message::Welcome(_) = wire.hear().unwrap() else { panic!("no welcome") };
        while wire.hear().unwrap() != Message::HaveEnd {}
        wire.say(&Message::Begin(Begin { generation: 1, source_time_ms: 1 })).unwrap();
        let offer = offer.lock().unwrap().expect("an offer comes before the welcome");
        (wire, offer, heard)
    }

    fn lane(&self, offer: &LaneOffer) -> Result<Tls> {
        lane(&self.agent, &self.receiver, offer).map(|(tls, _)| tls)
    }

    /// A session that went over to two lanes.
    fn spread(&self) -> (Wire, [Tls; 2]) {
        let (mut wire, offer) = self.session();
        let lanes = [self.lane(&offer).unwrap(), self.lane(&offer).unwrap()];
        go_over(&mut wire, 2);
        (wire, lanes)
    }
}

fn go_over(wire: &mut Wire, lanes: u32) {
    wire.say(&Message::Spread(lanes)).and_then(|()| wire.flush()).unwrap();
}

fn piece(lane: &mut Tls, number: u64, bytes: &[u8]) {
    // One that is refused already takes no more.
    let _ = lane.send_both(&PieceHead { number, bytes: bytes.len() }.encode(), bytes).and_then(|()| lane.flush());
}

fn refused(wire: &mut Wire) -> Error {
    loop {
        match wire.hear() {
            Err(error) => return error,
            Ok(message) => assert!(matches!(message, Message::Need(_)), "{message:?}"),
        }
    }
}

#[test]
fn pieces_in_any_order_are_the_stream() {
    let stage = Stage::new("", 1);
    let (mut wire, [mut a, mut b]) = stage.spread();
    // Two frames; the second is cut in the middle, and the pieces come the other way round.
    let (first, second) = (data(3), data(5));
    piece(&mut b, 2, &second[1000..]);
    piece(&mut b, 3, &stream::encode(&Message::Abort(stream::Refusal { kind: Kind::Failed, message: "that was it".into() })));
    std::thread::sleep(Duration::from_millis(100));
    piece(&mut a, 0, &first);
    piece(&mut a, 1, &second[..1000]);
    stage.receiver.wait_for("that was it");
    drop((a, b));
    assert!(wire.hear().is_err());
    // The first copy goes straight to the device: both extents are there.
    let replica = fs::read(stage.receiver.image("web")).unwrap();
    assert!(replica[3 * EXTENT..4 * EXTENT].iter().all(|byte| *byte == 4) && replica[5 * EXTENT..6 * EXTENT].iter().all(|byte| *byte == 6));
}

/// Where what is sent shrinks to little, a frame comes with each turn, and none in parts.
#[test]
fn who_takes_small_frames_says_that_it_gets_on() {
    let stage = Stage::new("stall_timeout = \"10s\"", 1);
    let (mut wire, _, heard) = stage.session_and_what_is_heard();
    let before = heard.load(Ordering::Relaxed);
    for _ in 0..60 {
        wire.put_bytes(&frame(3, Encoding::Zstd)).and_then(|()| wire.push()).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
    // A block of bytes and more. Its pulses are all that it says, until it gives us up.
    assert_eq!(wire.hear().unwrap_err().kind(), Kind::Transient);
    assert!(heard.load(Ordering::Relaxed) > before, "{}", stage.receiver.log());
}

#[test]
fn lies_on_further_connections_are_malformed_and_nothing_more() {
    let stage = Stage::new("", 1);
    let told = |tell: &dyn Fn(&mut Wire, &mut Tls, &mut Tls), words: &str| {
        let (mut wire, [mut a, mut b]) = stage.spread();
        tell(&mut wire, &mut a, &mut b);
        let said = refused(&mut wire);
        assert!(said.is_from_peer() && said.chain().contains(words), "{words}: {}", said.chain());
        drop((wire, a, b));
        stage.receiver.wait_for(words);
    };
    told(
        &|_, a, b| {
            piece(a, 1, &data(1));
            piece(b, 1, &data(1));
        },
        "piece 1 came twice",
    );
    told(
        &|_, a, b| {
            for (lane, number) in [(&mut *a, 1), (&mut *b, 2)] {
                piece(lane, number, &data(1));
                piece(lane, number + 2, &data(1));
            }
        },
        "piece 0 is missing",
    );
    told(
        &|_, a, _| {
            piece(a, 1, &data(1));
            piece(a, 0, &data(1));
        },
        "piece 0 came behind a later one",
    );
    told(
        &|_, a, _| a.send_both(&PieceHead { number: 0, bytes: TRANSPORT_BUFFER_BYTES + 1 }.encode(), &[]).unwrap(),
        "a piece of 1048577 bytes",
    );
    told(&|_, a, _| a.send_both(&PieceHead { number: 0, bytes: 0 }.encode(), &[]).unwrap(), "a piece of 0 bytes");
    told(&|_, a, _| a.send_both(&[7; 16], &[]).unwrap(), "damaged head of a piece");
    told(&|_, a, _| piece(a, 0, &[9; 5000]), "damaged frame header");
    told(&|_, a, _| piece(a, 0, &stream::encode(&Message::Spread(2))), "goes over to 2 further connections");
    told(
        &|_, a, _| piece(a, 0, &stream::encode(&Message::Lanes(LaneOffer { token: [1; 16], most: 9 }))),
        "Lanes frame where it has no place",
    );

    for (spread, words) in [(0, "goes over to 0"), (3, "goes over to 3 further connections, of 2 that are there")] {
        let (mut wire, offer) = stage.session();
        let _lanes = [stage.lane(&offer).unwrap(), stage.lane(&offer).unwrap()];
        go_over(&mut wire, spread);
        let said = refused(&mut wire);
        assert!(said.is_from_peer() && said.chain().contains(words), "{}", said.chain());
    }
    // And what comes behind the word on the first connection has no place there.
    let (mut wire, offer) = stage.session();
    let _lanes = [stage.lane(&offer).unwrap(), stage.lane(&offer).unwrap()];
    wire.put(&Message::Spread(2)).unwrap();
    wire.say(&Message::Mark(1)).unwrap();
    let said = refused(&mut wire);
    assert!(said.is_from_peer() && said.chain().contains("Spread frame where it has no place"), "{}", said.chain());

    let (code, said) = stage.clone(&["--connections", "2"]);
    assert_eq!(code, Some(0), "{said}");
    stage.is_same();
}

#[test]
fn nobody_joins_a_session_but_who_it_is_with() {
    let (agent, other, stranger) = (Agent::new(), Agent::new(), Agent::new());
    let clients = format!("connections_max = 3\n{}{}", agent.entry("prod1", "*", BOTH), other.entry("prod2", "*", BOTH));
    let receiver = Receiver::start(&["db", "web"], &clients);
    let stage = Stage { image: agent.folder.path().join("volume"), agent, receiver };
    let (mut wire, offer) = stage.session();
    assert_eq!(offer.most, 3);
    assert!(stage.lane(&LaneOffer { token: [0; 16], most: 1 }).is_err());
    assert!(lane(&other, &stage.receiver, &offer).is_err());
    let unknown = lane(&stranger, &stage.receiver, &offer).err().unwrap();
    assert!(unknown.kind() == Kind::Refused && unknown.chain().contains("does not know this host's key"), "{}", unknown.chain());
    // What is no word of ours, and as many as there are places: the session is none the worse for it.
    let (mut wrong, _) = connect(&stage.agent, &stage.receiver, Protocol::Lane).unwrap();
    wrong.send_both(&[3; 28], &[]).unwrap();
    let lanes: Vec<Tls> = (0..3).map(|_| stage.lane(&offer).unwrap()).collect();
    assert!(stage.lane(&offer).is_err());
    go_over(&mut wire, 3);
    drop(lanes);
    let ended = refused(&mut wire);
    assert!(ended.is_from_peer() && ended.chain().contains("closed the connection"), "{}", ended.chain());
    // A session that is over has no places.
    drop(wire);
    stage.receiver.wait_for("result=failed exit=4");
    assert!(stage.lane(&offer).is_err());
}

#[test]
fn a_connection_that_is_cut_ends_the_session_and_one_that_was_never_used_does_not() {
    let stage = Stage::new("", 1);
    let (mut wire, offer) = stage.session();
    let [(mut a, cut_a), (b, cut_b)] = [(); 2].map(|()| lane(&stage.agent, &stage.receiver, &offer).unwrap());
    go_over(&mut wire, 2);
    piece(&mut a, 0, &data(1));
    // The kernel closes this one without a goodbye of TLS: it never brought anything.
    cut(b, &cut_b);
    std::thread::sleep(Duration::from_millis(300));
    // More than the lane's own buffers hold: the session takes them.
    (1..9).for_each(|number| piece(&mut a, number, &data(number)));
    cut(a, &cut_a);
    let ended = refused(&mut wire);
    assert!(ended.kind() == Kind::Transient && ended.chain().contains("without a goodbye"), "{}", ended.chain());
}

/// One whose first piece is not whole yet has been used all the same: nobody waits for what can never come.
#[test]
fn a_connection_that_is_cut_in_its_first_piece_ends_the_session_at_once() {
    let stage = Stage::new("", 1);
    let (mut wire, offer) = stage.session();
    let [(mut a, cut_a), _b] = [(); 2].map(|()| lane(&stage.agent, &stage.receiver, &offer).unwrap());
    go_over(&mut wire, 2);
    let frame = data(1);
    a.send_both(&PieceHead { number: 0, bytes: frame.len() }.encode(), &frame[..1000]).and_then(|()| a.flush()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    cut(a, &cut_a);
    let ended = refused(&mut wire);
    assert!(ended.kind() == Kind::Transient && ended.chain().contains("without a goodbye"), "{}", ended.chain());
    // Who waits for the rest of the piece does so for the two minutes of the stall limit.
    assert!(begun.elapsed() < HANGS, "{:?}", begun.elapsed());
}

/// The last piece is there, and so is the news that a connection which brought others is gone: the piece counts.
#[test]
fn what_came_before_a_cut_is_taken() {
    let stage = Stage::new("", 1);
    let abort = Message::Abort(stream::Refusal { kind: Kind::Failed, message: "my last words".into() });
    // Nobody outside sees that a piece has gone from its connection's thread to the session: where a machine stands still for as
    // long as is waited here, the cut comes first. One of three tries shows it.
    let is_taken = |try_: usize| {
        let (mut wire, offer) = stage.session();
        let [(mut a, cut_a), (mut b, _)] = [(); 2].map(|()| lane(&stage.agent, &stage.receiver, &offer).unwrap());
        piece(&mut a, 0, &data(1));
        piece(&mut b, 1, &stream::encode(&abort));
        std::thread::sleep(Duration::from_secs(2));
        cut(a, &cut_a);
        std::thread::sleep(Duration::from_secs(2));
        // All of it is there when the session goes over.
        go_over(&mut wire, 2);
        stage.receiver.wait_for_times("session client=", try_).contains("my last words")
    };
    assert!((1..4).any(is_taken), "{}", stage.receiver.log());
}

/// Bytes of a pulse count no more here than on the first connection, and not twice.
#[test]
fn pulses_without_work_on_further_connections_are_no_progress() {
    let stage = Stage::new("stall_timeout = \"10s\"", 1);
    let (_wire, [mut a, _b]) = stage.spread();
    let pulse = stream::encode(&Message::Pulse(7));
    let begun = Instant::now();
    for number in 0.. {
        if stage.receiver.log().contains("got no work done for 10 seconds") {
            break;
        }
        assert!(begun.elapsed() < HANGS, "{}", stage.receiver.log());
        piece(&mut a, number, &pulse);
        if number % 10 == 0 {
            // Longer than the receiver waits in one go.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// The sender's word that it goes over comes late, where the first connection gets nothing of a link that all share. Such a
/// session was once given up, while its pieces came.
#[test]
fn pieces_that_come_before_the_word_of_them_are_progress() {
    let stage = Stage::new("stall_timeout = \"10s\"", 1);
    let (mut wire, offer) = stage.session();
    let [mut a, _b] = [(); 2].map(|()| stage.lane(&offer).unwrap());
    let frame = data(1);
    a.send_both(&PieceHead { number: 0, bytes: frame.len() }.encode(), &[]).unwrap();
    // Twice as long as the stall limit.
    for part in frame.chunks(frame.len().div_ceil(10)) {
        a.send_both(part, &[]).and_then(|()| a.flush()).unwrap();
        std::thread::sleep(Duration::from_secs(2));
    }
    piece(&mut a, 1, &stream::encode(&Message::Abort(stream::Refusal { kind: Kind::Failed, message: "my last words".into() })));
    go_over(&mut wire, 2);
    stage.receiver.wait_for("my last words");
}

/// Ends a connection as a host that vanishes does, or one whose process was killed.
fn cut(lane: Tls, handle: &TcpStream) {
    std::mem::forget(lane);
    handle.shutdown(Shutdown::Both).unwrap();
}

#[test]
fn connections_that_bring_nothing_are_given_up_in_time() {
    let stage = Stage::new("stall_timeout = \"10s\"", 1);
    let (mut wire, [mut a, _b]) = stage.spread();
    let begun = Instant::now();
    piece(&mut a, 1, &data(1));
    let ended = refused(&mut wire);
    assert!(ended.kind() == Kind::Transient, "{}", ended.chain());
    assert!((9..60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    stage.receiver.wait_for("moved no byte and got no work done for 10 seconds");
}
