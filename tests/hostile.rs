//! Peers who lie, against a real receiver: what each gets is an error, nothing is written outside the
//! rules, and the daemon lives on and serves the next.
//!
//! The liar holds a key that may push; what it says behind the handshake is made by hand.

#[path = "rig/receiver.rs"]
mod receiver;

use blockferry::attempt::own_key;
use blockferry::digest::{Algorithm, Digest, Hasher, SECRET_BYTES};
use blockferry::error::{Error, Kind};
use blockferry::extent::{ExtentIndex, Geometry};
use blockferry::format::stream::{
    self, Begin, Counts, DataTable, Encoding, End, FrameKind, HEADER_BYTES, Hello, Message, Purpose, Welcome,
};
use blockferry::limits::{FRAME_BODY_BYTES_MAX, FRAME_PLAIN_BYTES_MAX, HANDSHAKE_TIMEOUT};
use blockferry::ring::Choice;
use blockferry::state::{Side, SourceRecord};
use blockferry::transport::tls::{self, Protocol, Raw};
use blockferry::transport::{Wire, tcp};
use receiver::{Agent, Receiver, end};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

const BOTH: &str = "\"push\", \"verify\"";
const EXTENT: usize = 64 << 10;
const EXTENTS: usize = 16;
/// What takes longer hangs, also on a busy machine.
const HANGS: Duration = Duration::from_secs(60);

fn wire(agent: &Agent, receiver: &Receiver) -> Wire {
    connect(agent, receiver).unwrap()
}

fn connect(agent: &Agent, receiver: &Receiver) -> Result<Wire, Error> {
    let socket = tcp::connect(&receiver.address, HANDSHAKE_TIMEOUT, &Default::default())?;
    let stop = Default::default();
    let raw = Raw { socket, peer: "the receiver".into(), limit: HANGS, choice: Choice::Blocking, stop };
    let tls = tls::connect(raw, &own_key(&agent.state)?, receiver.pin, Protocol::Session)?;
    Wire::new(Box::new(tls))
}

fn hello(replica: &str) -> Hello {
    Hello {
        purpose: Purpose::Replicate,
        overwrite: false,
        rehash: false,
        relationship: Uuid::now_v7(),
        epoch: Uuid::now_v7(),
        generation: 0,
        root: Digest::UNKNOWN,
        volume_bytes: (EXTENT * EXTENTS) as u64,
        extent_bytes: EXTENT as u32,
        algorithm: Algorithm::Xxh3,
        secret: [5; SECRET_BYTES],
        target: replica.to_owned(),
        source: "a liar".to_owned(),
    }
}

/// Greets and introduces itself; what the receiver answers.
fn introduce(wire: &mut Wire, hello: &Hello) -> Result<Welcome, Error> {
    wire.greet()?;
    wire.say(&Message::Hello(Box::new(hello.clone())))?;
    let Message::Welcome(welcome) = wire.hear()? else { panic!("no welcome") };
    let Message::HaveEnd = wire.hear()? else { panic!("a list nobody asked for") };
    Ok(welcome)
}

/// The same over a connection of its own, as soon as those before it have given back what they had.
fn admitted(agent: &Agent, receiver: &Receiver, hello: &Hello) -> Result<Wire, Error> {
    let until = Instant::now() + HANGS;
    loop {
        let mut wire = wire(agent, receiver);
        match introduce(&mut wire, hello) {
            Ok(_) => return Ok(wire),
            Err(error) if (error.kind() == Kind::Locked || error.chain().contains("sessions already")) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error),
        }
    }
}

/// A Data frame that says what it is told to say.
struct Lie {
    extents: Vec<u64>,
    content: Vec<u8>,
    digest: Option<Digest>,
    plain_bytes: Option<usize>,
    payload: Option<Vec<u8>>,
}

impl Lie {
    /// Whole extents that are what they should be: a lie becomes one by what is changed.
    fn about(extents: &[u64]) -> Lie {
        let content = vec![3; EXTENT * extents.len()];
        Lie { extents: extents.to_vec(), content, digest: None, plain_bytes: None, payload: None }
    }

    fn frame(&self) -> Vec<u8> {
        let hello = hello("");
        let geometry = Geometry::new(hello.volume_bytes, hello.extent_bytes).unwrap();
        let hasher = Hasher::new(hello.algorithm, &hello.secret);
        let mut table = DataTable::new(&geometry);
        let right = hasher.extent(&self.content[..EXTENT], &mut Vec::new());
        for extent in &self.extents {
            table.push(ExtentIndex(*extent), &self.digest.unwrap_or(right), &[0xff; 2]);
        }
        let (payload, encoding) = match &self.payload {
            Some(packed) => (packed, Encoding::Zstd),
            None => (&self.content, Encoding::Stored),
        };
        let mut frame = vec![0; table.payload_at() + payload.len()];
        frame[table.payload_at()..].copy_from_slice(payload);
        let plain_bytes = self.plain_bytes.unwrap_or(self.content.len());
        let bytes = table.write(&mut frame, plain_bytes, payload.len(), encoding, true);
        frame.truncate(bytes);
        frame
    }
}

fn packed(bytes: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![3; bytes], 1).unwrap()
}

fn ending(generation: u64, root: Digest) -> Message {
    Message::End(End { generation, root, counts: Counts::default() })
}

/// An end that claims to have sent this much.
fn counting(plain_bytes: u64, zero_extents: u64) -> Message {
    Message::End(End { generation: 1, root: Digest([8; 16]), counts: Counts { plain_bytes, zero_extents, ..Counts::default() } })
}

/// Sends frames behind a Begin and returns what the receiver says to them.
fn lie(agent: &Agent, receiver: &Receiver, replica: &str, frames: &[Vec<u8>]) -> String {
    let mut wire = wire(agent, receiver);
    introduce(&mut wire, &hello(replica)).unwrap();
    wire.put(&Message::Begin(Begin { generation: 1, source_time_ms: 1 })).unwrap();
    for frame in frames {
        wire.put_bytes(frame).unwrap();
    }
    wire.push().unwrap();
    let refused = wire.hear().unwrap_err();
    assert!(refused.is_from_peer(), "{}", refused.chain());
    refused.chain()
}

#[test]
fn lies_about_extents_and_payloads_are_named_and_not_written() {
    let liar = Agent::new();
    let bomb = packed(256 << 20);
    assert!(bomb.len() < 100_000, "256 MiB in a small frame");
    let mut oversize = vec![0; HEADER_BYTES];
    stream::write_header(&mut oversize, FrameKind::Data, FRAME_BODY_BYTES_MAX + 1, 0);
    let mut endless = vec![0; HEADER_BYTES];
    stream::write_header(&mut endless, FrameKind::Data, u32::MAX as usize, 0);
    let mut flipped = Lie::about(&[1]).frame();
    flipped[HEADER_BYTES + 3] ^= 1;
    let zero = |first, count| stream::encode(&Message::Zero { first, count });
    let seal = stream::encode(&Message::HaveEnd);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("behind-the-end", Lie::about(&[EXTENTS as u64]).frame(), "beyond the end"),
        ("far-out", Lie::about(&[u64::MAX]).frame(), "beyond the end"),
        ("twice", Lie::about(&[3, 3]).frame(), "out of order"),
        ("backwards", Lie::about(&[3, 7, 5]).frame(), "out of order"),
        ("bomb", Lie { payload: Some(bomb), ..Lie::about(&[1]) }.frame(), "does not unpack"),
        ("too-much", Lie { payload: Some(packed(EXTENT + 1)), ..Lie::about(&[1]) }.frame(), "does not unpack"),
        ("too-little", Lie { payload: Some(packed(EXTENT - 1)), ..Lie::about(&[1]) }.frame(), "unpacks to less"),
        ("garbage", Lie { payload: Some(vec![0xee; 1000]), ..Lie::about(&[1]) }.frame(), "does not unpack"),
        ("sums", Lie { plain_bytes: Some(EXTENT + 4096), payload: Some(packed(EXTENT)), ..Lie::about(&[1]) }.frame(), "do not add up"),
        ("large", Lie { plain_bytes: Some(FRAME_PLAIN_BYTES_MAX + 1), payload: Some(packed(9)), ..Lie::about(&[1]) }.frame(), "too large"),
        ("digest", Lie { digest: Some(Digest([9; 16])), ..Lie::about(&[1]) }.frame(), "digest"),
        ("unknown-digest", Lie { digest: Some(Digest::UNKNOWN), ..Lie::about(&[1]) }.frame(), "no digest"),
        ("oversize", oversize, "out of bounds"),
        ("endless", endless, "out of bounds"),
        ("flipped", flipped, "damaged"),
        ("zero-far", zero(EXTENTS as u64, 1), ""),
        ("zero-long", zero(1, EXTENTS as u64), ""),
        ("zero-overflow", zero(u64::MAX, u64::MAX), ""),
        ("other-kind", seal, "no place"),
        ("no-frame", vec![0x55; 4096], "frame mark"),
        ("root", stream::encode(&ending(1, Digest([8; 16]))), "the delta makes root"),
        ("generation", stream::encode(&ending(7, Digest([8; 16]))), "another generation"),
        ("counts", stream::encode(&counting(1 << 20, 0)), "but 0 and 0 came"),
        ("zeros", stream::encode(&counting(0, u64::MAX)), "but 0 and 0 came"),
    ];
    let mut names: Vec<&str> = cases.iter().map(|(name, ..)| *name).collect();
    names.push("honest");
    let mut receiver = Receiver::start(&names, &liar.entry("liar", "*", BOTH));
    for (name, frame, words) in &cases {
        let said = lie(&liar, &receiver, name, std::slice::from_ref(frame));
        assert!(said.contains(words), "{name}: {said}");
        receiver.wait_for(&format!("replica={name:?} op=push"));
        let written = fs::read(receiver.image(name)).unwrap_or_default();
        assert!(written.iter().all(|byte| *byte == 0), "{name}: something was written");
        assert!(receiver.is_alive(), "{name}:\n{}", receiver.log());
    }
    let log = receiver.log();
    assert!(!log.contains("panicked") && !log.contains("result=committed"), "{log}");
    let image = liar.image("volume", EXTENT * EXTENTS, 1);
    let (code, said) = end(&liar.pass("clone", &image, &receiver, "honest", &[]));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_greeting_that_is_none_and_a_first_frame_that_is_none_end_the_session() {
    let liar = Agent::new();
    let mut receiver = Receiver::start(&["db"], &liar.entry("liar", "*", BOTH));
    let mut long = wire(&liar, &receiver);
    long.put_bytes(&vec![b'x'; 1 << 20]).unwrap();
    long.push().unwrap();
    receiver.wait_for("result=failed");
    drop(long);
    let mut other = wire(&liar, &receiver);
    other.greet().unwrap();
    other.say(&Message::Survey).unwrap();
    assert!(other.hear().unwrap_err().chain().contains("did not introduce itself"));
    for broken in [
        Hello { volume_bytes: u64::MAX, ..hello("db") },
        Hello { volume_bytes: 0, ..hello("db") },
        Hello { extent_bytes: 3, ..hello("db") },
        Hello { extent_bytes: 1 << 31, ..hello("db") },
        Hello { target: "x".repeat(4000), ..hello("db") },
        Hello { target: "/etc/passwd".into(), ..hello("db") },
        Hello { target: "db\nblockferry: session client=root result=committed".into(), ..hello("db") },
        Hello { source: "\u{1b}[2J".into(), ..hello("db") },
    ] {
        let mut wire = wire(&liar, &receiver);
        assert!(introduce(&mut wire, &broken).unwrap_err().is_from_peer());
    }
    assert!(receiver.is_alive() && !receiver.image("db").exists());
    let log = receiver.wait_for("is no name for a source");
    assert!(!log.contains("\nblockferry: session client=root") && !log.contains('\u{1b}'), "{log}");
    assert_eq!(fs::read_dir(receiver.state().join("replicas")).unwrap().count(), 0);
}

/// What the sender's own files say of its relationship, for a liar who knows it all.
fn known(agent: &Agent, replica: &str) -> Hello {
    let relationship = agent.state.relationships(Side::Sources).unwrap()[0];
    let record = SourceRecord::load(&agent.state.files(Side::Sources, &relationship).unwrap()).unwrap().unwrap();
    Hello {
        relationship,
        epoch: record.epoch,
        generation: record.generation,
        root: record.root,
        volume_bytes: record.volume_bytes,
        extent_bytes: record.extent_bytes,
        algorithm: record.algorithm,
        secret: record.secret,
        ..hello(replica)
    }
}

#[test]
fn a_wrong_relationship_epoch_base_or_size_changes_nothing() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db", "other"], &agent.entry("prod1", "*", BOTH));
    let image = agent.image("volume", EXTENT * EXTENTS, 1);
    assert_eq!(end(&agent.pass_once("clone", &image, &receiver, "db")).0, Some(0));
    let right = known(&agent, "db");
    let cases = [
        ("is the replica of", Kind::Refused, Hello { relationship: Uuid::now_v7(), ..right.clone() }),
        ("that of another replica", Kind::Refused, Hello { target: "other".into(), ..right.clone() }),
        ("secret differ", Kind::Refused, Hello { secret: [1; SECRET_BYTES], ..right.clone() }),
        ("shrank", Kind::Refused, Hello { volume_bytes: right.volume_bytes / 2, ..right.clone() }),
        ("grow the replica", Kind::Refused, Hello { volume_bytes: right.volume_bytes * 2, ..right.clone() }),
        ("", Kind::Operator, Hello { epoch: Uuid::now_v7(), ..right.clone() }),
        ("not obeyed", Kind::Refused, Hello { overwrite: true, ..right.clone() }),
    ];
    for (words, kind, lie) in cases {
        let refused = admitted(&agent, &receiver, &lie).err().unwrap();
        assert!(refused.is_from_peer() && refused.chain().contains(words), "{}", refused.chain());
        assert_eq!(refused.kind(), kind, "{}", refused.chain());
    }
    // The old session once more, and a generation that leaves one out.
    for generation in [1, 3] {
        let mut wire = admitted(&agent, &receiver, &right).unwrap();
        wire.say(&Message::Begin(Begin { generation, source_time_ms: 1 })).unwrap();
        let refused = wire.hear().unwrap_err();
        assert!(refused.chain().contains("but 2 comes next"), "{}", refused.chain());
    }
    assert_eq!(fs::read(&image).unwrap(), fs::read(receiver.image("db")).unwrap());
    assert!(!receiver.image("other").exists());
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
}

/// A frame that came before comes again with other content, and zeros over both: each is proven for itself, the later
/// word counts, and what all of it makes is not what the sender says it is.
#[test]
fn extents_that_overlap_or_come_again_make_no_generation_that_was_not_meant() {
    let agent = Agent::new();
    let mut receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    let image = agent.image("volume", EXTENT * EXTENTS, 1);
    assert_eq!(end(&agent.pass_once("clone", &image, &receiver, "db")).0, Some(0));
    let (right, before) = (known(&agent, "db"), fs::read(receiver.image("db")).unwrap());
    let geometry = Geometry::new(right.volume_bytes, right.extent_bytes).unwrap();
    let hasher = Hasher::new(right.algorithm, &right.secret);
    let whole = |extent: u64, fill: u8, bitmap: &[u8; 2], digest: Option<Digest>| {
        let content = vec![fill; EXTENT];
        let bytes = bitmap.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() * 4096;
        let mut table = DataTable::new(&geometry);
        table.push(ExtentIndex(extent), &digest.unwrap_or_else(|| hasher.extent(&content, &mut Vec::new())), bitmap);
        let mut frame = vec![0; table.payload_at() + bytes];
        frame[table.payload_at()..].copy_from_slice(&content[..bytes]);
        let length = table.write(&mut frame, bytes, bytes, Encoding::Stored, *bitmap == [0xff; 2]);
        frame.truncate(length);
        frame
    };
    let all = &[0xff; 2];
    let begin = || {
        let mut wire = admitted(&agent, &receiver, &right).unwrap();
        wire.put(&Message::Begin(Begin { generation: 2, source_time_ms: 1 })).unwrap();
        wire
    };
    let mut wire = begin();
    for frame in [whole(3, 1, all, None), whole(3, 2, all, None), whole(3, 1, all, None)] {
        wire.put_bytes(&frame).unwrap();
    }
    wire.put(&Message::Zero { first: 2, count: 3 }).unwrap();
    wire.put_bytes(&whole(4, 9, all, None)).unwrap();
    let counts = Counts { plain_bytes: 4 * EXTENT as u64, zero_extents: 3, ..Counts::default() };
    wire.put(&Message::End(End { generation: 2, root: right.root, counts })).unwrap();
    wire.push().unwrap();
    let refused = wire.hear().unwrap_err();
    assert!(refused.is_from_peer() && refused.chain().contains("the delta makes root"), "{}", refused.chain());
    drop(wire);
    assert!(fs::read(receiver.image("db")).unwrap() == before, "something was written");

    // Single blocks over what does not have that digest with them: asked for again, whole, and not for ever.
    let mut wire = begin();
    let mut plain_bytes = 0;
    let refused = loop {
        wire.put_bytes(&whole(5, 7, &[1, 0], Some(Digest([6; 16])))).unwrap();
        plain_bytes += 4096;
        let counts = Counts { plain_bytes, ..Counts::default() };
        wire.put(&Message::End(End { generation: 2, root: right.root, counts })).unwrap();
        wire.push().unwrap();
        match wire.hear() {
            Ok(Message::Need(extents)) => assert_eq!(extents, [5]),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(refused.is_from_peer() && plain_bytes <= 5 * 4096, "{}", refused.chain());
    drop(wire);
    assert!(fs::read(receiver.image("db")).unwrap() == before && receiver.is_alive());
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
}

/// Somebody on the way writes down what an honest agent sent, and sends it again.
#[test]
fn a_recorded_session_that_is_played_again_opens_nothing() {
    let agent = Agent::new();
    let mut receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    let image = agent.image("volume", EXTENT * EXTENTS, 1);
    let between = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = between.local_addr().unwrap().to_string();
    let to = receiver.address.clone();
    let listener = std::thread::spawn(move || {
        let (agent, _) = between.accept().unwrap();
        let receiver = TcpStream::connect(to).unwrap();
        let (mut answers, mut back) = (receiver.try_clone().unwrap(), agent.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let (mut recorded, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(bytes @ 1..) = (&agent).read(&mut piece) {
            recorded.extend_from_slice(&piece[..bytes]);
            let _ = (&receiver).write_all(&piece[..bytes]);
        }
        recorded
    });
    let target = format!("blockferry://{address}/db");
    let (code, said) = end(&agent.run(&["clone", image.to_str().unwrap(), &target, "--pin", &receiver.pin.to_string()]));
    assert_eq!(code, Some(0), "{said}");
    let recorded = listener.join().unwrap();
    assert!(recorded.len() > 10_000, "{} bytes", recorded.len());
    receiver.wait_for("result=committed generation=1");

    let again = TcpStream::connect(&receiver.address).unwrap();
    again.set_read_timeout(Some(HANGS)).unwrap();
    // It may hang up in the middle.
    let _ = (&again).write_all(&recorded);
    let ended = (&again).read_to_end(&mut Vec::new());
    assert!(!ended.is_err_and(|cause| cause.kind() == std::io::ErrorKind::WouldBlock), "it is not hung up on");
    assert!(receiver.is_alive());
    let log = receiver.log();
    assert_eq!(log.matches("session client=").count(), 1, "{log}");
    assert_eq!(fs::read(&image).unwrap(), fs::read(receiver.image("db")).unwrap());
}

#[test]
fn what_comes_after_the_end_is_not_heard() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    let image = agent.image("volume", EXTENT * EXTENTS, 1);
    assert_eq!(end(&agent.pass_once("clone", &image, &receiver, "db")).0, Some(0));
    let right = known(&agent, "db");
    let mut wire = admitted(&agent, &receiver, &right).unwrap();
    wire.put(&Message::Begin(Begin { generation: 2, source_time_ms: 1 })).unwrap();
    wire.put(&ending(2, right.root)).unwrap();
    wire.put_bytes(&Lie::about(&[1]).frame()).unwrap();
    wire.put(&Message::Zero { first: 0, count: EXTENTS as u64 }).unwrap();
    wire.push().unwrap();
    let Message::Ack(ack) = wire.hear().unwrap() else { panic!("no commit") };
    assert_eq!((ack.generation, ack.root), (2, right.root));
    drop(wire);
    receiver.wait_for("result=committed generation=2");
    assert_eq!(fs::read(&image).unwrap(), fs::read(receiver.image("db")).unwrap());
}

#[test]
fn the_second_owner_of_a_replica_and_a_session_too_many_are_told_to_come_back() {
    let agent = Agent::new();
    let mut receiver = Receiver::start(&["db", "web"], &format!("sessions_max = 2\n{}", agent.entry("prod1", "*", BOTH)));
    let image = agent.image("volume", 1 << 20, 1);
    let mut first = wire(&agent, &receiver);
    introduce(&mut first, &hello("db")).unwrap();
    let (code, said) = end(&agent.pass_once("clone", &image, &receiver, "db"));
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("in use by a session of prod1 from 127.0.0.1:"), "{said}");
    // Who was refused is one session too many until its own is over.
    receiver.wait_for_times("replica=\"db\" op=push", 1);
    let mut second = admitted(&agent, &receiver, &hello("web")).unwrap();
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "web", &[]));
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("serves 2 sessions already"), "{said}");
    drop(first);
    receiver.wait_for_times("replica=\"db\" op=push", 2);
    receiver.wait_for_times("session client=", 3);
    let (code, said) = end(&agent.pass_once("clone", &image, &receiver, "db"));
    assert_eq!(code, Some(0), "{said}");
    // A session that is open does not hold up the end of the daemon; its peer hears why.
    assert_eq!(receiver.stop(), Some(0), "{}", receiver.log());
    let stopped = second.hear().unwrap_err();
    assert_eq!(stopped.kind(), Kind::Interrupted, "{}", stopped.chain());
}

/// Whether those who never get to the point are cut by the limit of three seconds, and not by the ten that nobody set: one is
/// silent, one trickles, and one with a key says nothing, for which it has the same time again.
fn are_cut_in_time(agent: &Agent, receiver: &Receiver) -> bool {
    let late = || receiver.log().matches("took too long for its first frame").count();
    let (before, begun) = (late(), Instant::now());
    let in_time = || begun.elapsed() < Duration::from_secs(9);
    let silent = TcpStream::connect(&receiver.address).unwrap();
    let mut trickle = TcpStream::connect(&receiver.address).unwrap();
    // Where the machine stands still meanwhile, this one is cut before it has shown its key.
    let known = connect(agent, receiver);
    for byte in [22, 3, 1, 1, 0] {
        let _ = trickle.write_all(&[byte]);
        std::thread::sleep(Duration::from_millis(100));
    }
    for mut socket in [&silent, &trickle] {
        socket.set_read_timeout(Some(HANGS)).unwrap();
        let ended = socket.read(&mut [0; 64]);
        assert!(
            matches!(&ended, Ok(0)) || ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
            "{ended:?}"
        );
    }
    while in_time() && late() == before {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(known);
    in_time() && late() > before
}

#[test]
fn silence_and_a_trickle_end_by_the_time_limit() {
    let agent = Agent::new();
    let mut receiver = Receiver::start(&["db"], &format!("handshake_timeout = \"3s\"\n{}", agent.entry("prod1", "*", BOTH)));
    // A busy machine may take longer once or twice; who does not go by the limit always does.
    assert!((0..3).any(|_| are_cut_in_time(&agent, &receiver)), "{}", receiver.log());
    assert!(receiver.is_alive());
}

#[test]
fn a_thousand_silent_connections_keep_nobody_out() {
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most.min(4096), most);
    let agent = Agent::new();
    let rest = format!("handshakes_max = 16\nhandshake_timeout = \"60s\"\n{}", agent.entry("prod1", "*", BOTH));
    let mut receiver = Receiver::start(&["db"], &rest);
    let image = agent.image("volume", 1 << 20, 1);
    let crowd: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(&receiver.address).unwrap()).collect();
    let (code, said) = end(&agent.pass_once("clone", &image, &receiver, "db"));
    assert_eq!(code, Some(0), "{said}");
    let until = Instant::now() + HANGS;
    while receiver.threads() > 16 + 4 {
        assert!(Instant::now() < until, "{} threads", receiver.threads());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(receiver.is_alive());
    drop(crowd);
    assert_eq!(end(&agent.pass("verify", &image, &receiver, "db", &[])).0, Some(0));
    assert_eq!(receiver.stop(), Some(0));
}

#[test]
fn a_session_without_progress_is_given_up_and_the_replica_goes_on() {
    let agent = Agent::new();
    // The pulses below have to come in this time, also on a machine that stands still now and then.
    let rest = format!("stall_timeout = \"15s\"\n{}", agent.entry("prod1", "*", BOTH));
    let receiver = Receiver::start(&["silent", "trickle", "pulses", "marks", "works", "next"], &rest);
    let open = |replica: &str| {
        let mut wire = wire(&agent, &receiver);
        introduce(&mut wire, &hello(replica)).unwrap();
        wire.say(&Message::Begin(Begin { generation: 1, source_time_ms: 1 })).unwrap();
        wire
    };
    let (silent, mut trickle, mut pulses, mut marks) = (open("silent"), open("trickle"), open("pulses"), open("marks"));
    let mut works = open("works");
    // The front of a frame that never ends: ten bytes a second are no progress.
    let mut front = Lie::about(&[1]).frame().into_iter();
    let given_up = |replica: &str| {
        receiver.log().lines().any(|line| line.contains(&format!("replica={replica:?}")) && line.contains("got no work done"))
    };
    let until = Instant::now() + Duration::from_secs(180);
    let mut work = 0;
    while !["silent", "trickle", "pulses", "marks"].iter().all(|replica| given_up(replica)) {
        assert!(Instant::now() < until, "{}", receiver.log());
        work += 1;
        let _ = pulses.say(&Message::Pulse(7));
        // Whole frames now and then, which say nothing.
        if work % 20 == 0 {
            let _ = marks.say(&Message::Mark(7));
        }
        let _ = front.next().map(|byte| trickle.put_bytes(&[byte]).and_then(|()| trickle.push()));
        works.say(&Message::Pulse(work)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(receiver.log().contains("result=failed exit=4") && !given_up("works"), "{}", receiver.log());
    // It may begin; what it says now is heard.
    works.say(&ending(7, Digest([8; 16]))).unwrap();
    assert!(works.hear().unwrap_err().chain().contains("another generation"));
    drop((silent, trickle, pulses));
    let image = agent.image("volume", EXTENT * EXTENTS, 1);
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "next", &[]));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn who_loses_its_rights_loses_its_session_and_nobody_else_does() {
    let (listed, paired, other) = (Agent::new(), Agent::new(), Agent::new());
    let kept = other.entry("other", "*", BOTH);
    let receiver = Receiver::start(&["a", "b", "c"], &(listed.entry("listed", "*", BOTH) + &kept));
    let invited = receiver.run(&["pair", "invite", "--replica", "*", "--address", &receiver.address]);
    let token = String::from_utf8(invited.stdout).unwrap().trim().to_owned();
    assert_eq!(end(&paired.run(&["pair", "accept", &token, "--name", "paired"])).0, Some(0));
    let open = |agent: &Agent, replica: &str| {
        let mut wire = wire(agent, &receiver);
        introduce(&mut wire, &hello(replica)).unwrap();
        wire
    };
    let (mut first, mut second, mut third) = (open(&listed, "a"), open(&paired, "b"), open(&other, "c"));
    assert_eq!(end(&receiver.run(&["pair", "revoke", "paired"])).0, Some(0));
    assert_eq!(second.hear().unwrap_err().kind(), Kind::Interrupted);
    receiver.wait_for("paired may not do this any more");
    // What is left of the grants does not cover what the session is about.
    receiver.reconfigure(&["a", "b", "c"], &(listed.entry("listed", "b", BOTH) + &kept));
    assert_eq!(first.hear().unwrap_err().kind(), Kind::Interrupted);
    let log = receiver.wait_for("listed may not do this any more");
    assert!(log.contains("replica=\"a\" op=push") && log.contains("exit=8"), "{log}");
    third.say(&Message::Begin(Begin { generation: 3, source_time_ms: 1 })).unwrap();
    assert!(third.hear().unwrap_err().chain().contains("but 1 comes next"));
}

/// A session is looked at between two frames, not only while it waits for one.
#[test]
fn a_session_that_never_pauses_ends_with_its_rights() {
    let talker = Agent::new();
    let receiver = Receiver::start(&["a"], "");
    let invited = receiver.run(&["pair", "invite", "--replica", "*", "--address", &receiver.address]);
    let token = String::from_utf8(invited.stdout).unwrap().trim().to_owned();
    assert_eq!(end(&talker.run(&["pair", "accept", &token, "--name", "talker"])).0, Some(0));
    let mut wire = wire(&talker, &receiver);
    introduce(&mut wire, &hello("a")).unwrap();
    wire.say(&Message::Begin(Begin { generation: 1, source_time_ms: 1 })).unwrap();
    let until = Instant::now() + Duration::from_secs(180);
    let marks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            while Instant::now() < until && wire.say(&Message::Mark(marks.load(Ordering::Relaxed))).is_ok() {
                marks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        while marks.load(Ordering::Relaxed) <= 100 {
            assert!(!talking.is_finished(), "it may talk:\n{}", receiver.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(end(&receiver.run(&["pair", "revoke", "talker"])).0, Some(0));
        receiver.wait_for("talker may not do this any more");
    });
    assert!(Instant::now() < until, "its connection was closed");
}

#[test]
fn a_crowd_of_strangers_fills_no_log() {
    let (agent, stranger) = (Agent::new(), Agent::new());
    let begun = Instant::now();
    let mut receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    for _ in 0..20 {
        let mut wire = wire(&stranger, &receiver);
        assert!(wire.greet().is_err());
    }
    receiver.wait_for("which is not paired");
    assert_eq!(receiver.stop(), Some(0));
    let lines = receiver.log().lines().filter(|line| line.contains("refused from=")).count();
    // A minute has five.
    let minutes = begun.elapsed().as_secs() as usize / 60 + 1;
    assert!((1..=5 * minutes).contains(&lines), "{lines} lines in {minutes} minutes:\n{}", receiver.log());
}
