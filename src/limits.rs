//! Every bound of the program, with its reason. A queue, frame, retry or buffer that has no line
//! here has no bound, and that is a bug.

use std::time::Duration;

/// The unit of sending and of the 32-bit fingerprints: the page size of nearly every file system
/// and data base, so that a random write touches one.
pub const BLOCK_BYTES: usize = 4096;

/// Smallest extent: one block.
pub const EXTENT_BYTES_MIN: u32 = 4096;
/// Default extent: 80 bytes of manifest for each, 0.12 % of the volume.
pub const EXTENT_BYTES_DEFAULT: u32 = 64 << 10;
/// Largest extent: it has to fit one I/O buffer and one frame.
pub const EXTENT_BYTES_MAX: u32 = 4 << 20;

/// The unit of I/O; an extent larger than this is its own chunk.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Largest volume that offsets and page counts are believed for (1 EiB), so that no sum of two
/// offsets that came from outside can overflow.
pub const VOLUME_BYTES_MAX: u64 = 1 << 60;
/// Most extents of a volume: with 64 KiB extents 4 PiB. A manifest in use holds 16 bytes for each million of them,
/// which at this many is 1 MiB; without a bound a peer that claims an exbibyte in 4 KiB extents would cost 4 GiB.
pub const VOLUME_EXTENTS_MAX: u64 = 1 << 36;

/// Devices are counted in sectors of this size.
pub const SECTOR_BYTES: u64 = 512;

/// Reads in flight on the source: full speed of the measured disks from 1 MiB x 2 on; more hides a network's latency.
pub const READ_DEPTH: usize = 4;
/// Chunks that are kept for slower readers of one snapshot: what two receivers drift apart in a second or so, in 24 MiB.
pub const SHARED_WINDOW: usize = 24;
/// How long a reader waits for slower ones of the same snapshot all in all, beside a tenth of its time: a second read
/// of the source costs more than that, a replica that is held back for long costs more still.
pub const SHARED_BRAKE: Duration = Duration::from_secs(1);
/// The same at one chunk.
pub const SHARED_BRAKE_ONCE: Duration = Duration::from_millis(250);
/// Read buffers above the depth, so that the next read is submitted before a chunk is hashed.
pub const READ_SPARE: usize = 2;
/// Most shards of a pass: one of them reads and hashes 3 GB/s, and the line they share takes a third of that.
pub const SHARDS_MAX: usize = 16;
/// Most shards unless somebody asks for more: as many as the pages that a manifest keeps at hand.
pub const SHARDS_AUTO_MAX: usize = PAGES_CACHED;
/// Packed frames of a shard that may wait for the wire: enough to last while the shard that has it packs its own.
pub const SHARD_FRAMES_WAITING: usize = 4;
/// Further connections of one session at most: a long link's window is that many times as wide, a fast link's encryption has
/// as many threads; what an end holds for each is some 4 MiB.
pub const LANES_MAX: usize = 16;
/// Further connections of all sessions of a receiver together, unless receiver.toml says otherwise: some 256 MiB.
pub const LANES_ALL: usize = 64;
/// The most that receiver.toml may say.
pub const LANES_LIMIT: usize = 4096;
/// Further connections at once that have not shown which session they are for.
pub const LANES_JOINING_MAX: usize = 64;
/// Bytes after which a pass that may have further connections opens them: what is over in a moment needs none.
pub const LANES_FROM_BYTES: u64 = 8 << 20;
/// Pieces of a lane that may wait at the receiver for one of another lane that goes before: one that comes while one waits.
pub const LANE_PIECES: usize = 2;
/// Pieces beside one for each lane at the sender: one that is filled, one that waits for a lane.
pub const LANE_PIECES_SPARE: usize = 2;
/// How long a thread that has two things to wait for waits for one of them.
pub const LANE_LOOK: Duration = Duration::from_millis(20);
/// Descriptors of a lane: its socket twice, its ring, and the handle by which it is closed while it proves its key.
pub const LANE_DESCRIPTORS: u64 = 4;
/// What a shard claims of the volume at once: long reads, and an end that all shards reach at about the same time.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// A small volume is cut into as many segments for each shard.
pub const SEGMENTS_A_SCAN: u64 = 8;
/// Write buffers of the receiver, one of them being filled: full speed of the measured disks from 1 MiB x 4 on.
pub const WRITE_DEPTH: usize = 4;
/// Entries of a ring's submission queue; longer run lists wait in a list of our own.
pub const RING_ENTRIES: u32 = 128;
/// Threads of the blocking engine: four cost about five per cent against io_uring.
pub const BLOCKING_THREADS: usize = 4;

/// Plain bytes after which the packer closes a Data frame: longer runs pack no better.
pub const PACK_BYTES: usize = 256 << 10;
/// Plain bytes, and time, after which `--compress auto` looks at where the time went: enough runs for an average, and
/// long enough beside what lies in buffers.
pub const COMPRESS_WINDOW_BYTES: u64 = 8 << 20;
/// See `COMPRESS_WINDOW_BYTES`.
pub const COMPRESS_WINDOW: Duration = Duration::from_millis(250);
/// Where runs are stored, one in this many is packed all the same, to see what packing would do: 3 % of one core.
pub const COMPRESS_SAMPLE_RUNS: u64 = 64;
/// Extents of one Data frame, so that its table stays small beside its payload.
pub const FRAME_EXTENTS_MAX: usize = 256;
/// Largest plain payload of a Data frame: a full pack, or one extent of the largest size.
pub const FRAME_PLAIN_BYTES_MAX: usize = EXTENT_BYTES_MAX as usize + PACK_BYTES;
/// Largest body of any frame: the plain payload stored, and its table.
pub const FRAME_BODY_BYTES_MAX: usize = FRAME_PLAIN_BYTES_MAX + (256 << 10);
/// Longest greeting line; what is longer is not our program.
pub const GREETING_BYTES_MAX: usize = 128;
/// Longest string in a handshake or error frame.
pub const STRING_BYTES_MAX: usize = 4096;
/// Entries of one Have frame.
pub const HAVE_ENTRIES_MAX: usize = 1024;
/// Extents one Need frame may ask for again.
pub const NEED_EXTENTS_MAX: usize = 16 << 10;
/// Times the receiver asks for extents again before it gives the session up.
pub const NEED_ROUNDS_MAX: u32 = 4;

/// Ranges of extents of one Part frame: 64 KiB.
pub const PART_RANGES_MAX: usize = 4096;
/// Ranges of extents that one look may ask for, in several frames: 1 MiB of memory at the receiver. A sample of so many
/// extents finds a difference in one of ten thousand with certainty.
pub const SAMPLE_RANGES_MAX: usize = 65536;

/// Bytes of one outgoing or incoming transport buffer: one largest frame must fit.
pub const TRANSPORT_BUFFER_BYTES: usize = 1 << 20;
/// Outgoing buffers on their way before the sender has to wait.
pub const TRANSPORT_BUFFERS: usize = 2;

/// Bytes of one write onto a stream: a whole buffer, which the kernel sends while we work. That a slow link moves
/// it is not seen here; the peer tells of it.
pub const TRANSMIT_BYTES: usize = TRANSPORT_BUFFER_BYTES + TLS_EXTRA_BYTES;
/// What an idle connection may send at once under a limit of bandwidth, as time: enough to use all of the limit
/// although turns are late.
pub const PACE_BURST: Duration = Duration::from_millis(100);
/// How often the clock is asked which limit of bandwidth holds.
pub const PACE_RECHECK: Duration = Duration::from_secs(1);
/// What TLS adds to a full transport buffer at most: 22 bytes for each record of 16 KiB, and its own answers.
pub const TLS_EXTRA_BYTES: usize = 64 << 10;

/// Journal bytes between two syncs while receiving: what a cut costs at most.
pub const JOURNAL_CHECKPOINT_BYTES: u64 = 64 << 20;
/// Journal bytes that are written before room is asked for again: up to the next sync, and the frame that makes it due.
pub const JOURNAL_WINDOW_BYTES: u64 = JOURNAL_CHECKPOINT_BYTES + (8 << 20);
/// What the seal and the padding to whole blocks add to a journal at most.
pub const JOURNAL_SLACK_BYTES: u64 = 16 << 10;
/// Smallest total of all journals: one frame of the largest size and its seal must fit.
pub const JOURNAL_MAX_MIN_BYTES: u64 = 16 << 20;
/// Replica bytes between two flushes of a direct copy, which waits for each: what a cut costs.
pub const DIRECT_CHECKPOINT_BYTES: u64 = 256 << 20;
/// Where a device takes them in less time than this, more go between two flushes: a cut costs no more than that.
pub const DIRECT_CHECKPOINT_TIME: Duration = Duration::from_secs(2);
/// Replica bytes between two flushes at most, however fast the device is: the drafted pages of 4 GiB are 5 MiB.
pub const DIRECT_CHECKPOINT_BYTES_MAX: u64 = 4 << 30;
/// What a journal leaves free on its file system unless `journal.reserve` says otherwise.
pub const JOURNAL_RESERVE_BYTES: u64 = 16 << 20;
/// Of a small volume, one part in this many is left free instead: its deltas are small too.
pub const JOURNAL_RESERVE_PART: u64 = 64;

/// Extents of one manifest page: with 64 KiB extents a page is 20 KiB and covers 16 MiB.
pub const PAGE_EXTENTS: usize = 256;
/// Zero pages of a manifest that a direct copy forgets with one sync: with 64 KiB extents the 256 MiB of a checkpoint.
pub const FORGET_PAGES: u64 = 16;
/// Manifest pages held in memory by one reader or writer.
pub const PAGES_CACHED: usize = 4;

/// Extents re-hashed on the replica before the first write of a session, beside the first and the last.
pub const SAMPLE_EXTENTS: usize = 6;
/// Extents compared to find out whether a target already holds a copy.
pub const SEED_SAMPLES: usize = 64;

/// Time limit for helpers such as blkid.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between asking a helper to end and killing it: lvm2 ends at the next safe point.
pub const HELPER_STOP_GRACE: Duration = Duration::from_secs(20);
/// How long what a program had printed before it ended is still taken in, where something that it left behind has
/// its pipe: a daemon that a hook started keeps that for good.
pub const HELPER_DRAIN: Duration = Duration::from_secs(1);
/// Of what a helper prints, so much is kept: the reason of a failure stands at its end.
pub const HELPER_OUTPUT_BYTES: usize = 64 << 10;
/// Output of one lvm2 command: a report of 10 000 volumes is some 5 MB.
pub const LVM_OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Time limit for a hook that names none: to quiesce a data base takes seconds.
pub const HOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between asking a hook, or a program that tells somebody something, to end and killing it.
pub const HOOK_STOP_GRACE: Duration = Duration::from_secs(5);
/// Of what a hook prints, so much is kept for the message of its failure.
pub const HOOK_OUTPUT_BYTES: usize = 4096;
/// Time limit for one notification on one way: a run must not wait long for a pager.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(15);
/// Times in a row that the same event of a job is told at once; later ones are told once in [`NOTIFY_AGAIN`].
pub const NOTIFY_AT_ONCE: u64 = 3;
/// How often an event is told that goes on.
pub const NOTIFY_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a replica that stays too far behind counts as an event: it is looked at every minute.
pub const NOTIFY_LAG_PAUSE: Duration = Duration::from_secs(60 * 60);
/// Of what a web server answers, so much is read: for the reason of a refusal.
pub const NOTIFY_ANSWER_BYTES: u64 = 2000;
/// Longest text of a notification: pagers cut it anyway, and it is kept in the job's book until it is delivered.
pub const NOTIFY_TEXT_BYTES: usize = 2000;
/// Notifications of a job that wait for a way that fails; the oldest go first.
pub const NOTIFY_WAITING_MAX: usize = 64;
/// Time limit for one lvm2 command. Scanning hundreds of disks takes seconds; a dead path takes forever.
pub const LVM_TIMEOUT: Duration = Duration::from_secs(120);
/// Time after which an lvm2 command that has not ended is named.
pub const LVM_SILENCE: Duration = Duration::from_secs(15);

/// Smallest COW store of a classic snapshot: a quiet volume still writes its file system's journal.
pub const COW_BYTES_MIN: u64 = 16 << 20;
/// Where the group has four times as much to spare, a COW store that follows the changes is no smaller than this: what
/// a busy disk writes between two looks at its fill ([`SNAPSHOT_WATCH`]). A small busy volume overflowed one of 16 MiB.
pub const COW_CUSHION: u64 = 512 << 20;
/// Per cent of the volume that a COW store gets while nothing is known of the changes.
pub const COW_FIRST_PERCENT: u8 = 10;
/// Per cent from which a classic snapshot is extended: half a store is left for the time until the next look.
pub const COW_EXTEND_PERCENT: f64 = 50.0;
/// Per cent of a thin pool's data or metadata above which it gets no snapshot: a full pool stops the origin.
pub const POOL_PERCENT_MAX: f64 = 95.0;
/// How often the fill of a snapshot is looked at.
pub const SNAPSHOT_WATCH: Duration = Duration::from_secs(2);
/// Time without an answer of a disk, requests waiting, after which that is said: a suspended device, or a broken path to it.
pub const DISK_SILENCE: Duration = Duration::from_secs(15);
/// Times a snapshot that somebody (udev, a scanner) has open for a moment is tried to be removed.
pub const REMOVE_TRIES: u32 = 20;
/// Time between two such tries.
pub const REMOVE_PAUSE: Duration = Duration::from_millis(250);

/// Years ahead that a calendar is searched for its next tick: a Monday that is a leap day may take forty.
pub const CALENDAR_YEARS_AHEAD: i16 = 48;
/// Entries of one list of limits by the hour: one for every hour of a week is more than anybody wants.
pub const BANDWIDTH_ENTRIES_MAX: usize = 168;
/// Borders of windows looked at for the next change of a limit; a list whose borders change nothing for
/// this long is asked again then.
pub const BANDWIDTH_CHANGES_MAX: usize = 400;

/// Time limit for a connection to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit from a connection to the end of its TLS handshake, and from there to the first frame.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once that have not proven a key: each is a thread and some 40 KB. One more closes the
/// oldest, so that a crowd that says nothing cannot keep out one that does.
pub const HANDSHAKES_MAX: usize = 256;
/// Sessions at once unless receiver.toml says otherwise: docs/PERFORMANCE.md has what each takes; 256 of them fit 2 GiB.
pub const SESSIONS_MAX: usize = 256;
/// The most that receiver.toml may say: 32 GiB of buffers and twice as many threads as a host has by default.
pub const SESSIONS_LIMIT: usize = 4096;
/// The most connections without a key that receiver.toml may say.
pub const HANDSHAKES_LIMIT: usize = 65_536;
/// Descriptors of one session: its socket, three rings, device, journal, manifests, locks, and some while files change.
pub const SESSION_DESCRIPTORS: u64 = 20;
/// Descriptors of a connection without a key: the socket and the handle by which it is closed.
pub const HANDSHAKE_DESCRIPTORS: u64 = 2;
/// Invitations open at once.
pub const INVITES_MAX: usize = 64;
/// Connections that hand in a token at once: their keys are nobody's yet.
pub const PAIRINGS_MAX: usize = 8;
/// Refused connections of a minute that get a line of the log each; the others are counted.
pub const REFUSALS_LOGGED: u32 = 5;
/// The minute.
pub const REFUSALS_WINDOW: Duration = Duration::from_secs(60);
/// How often the rights of open sessions are looked at: a revoked client is gone within seconds.
pub const REVOKE_CHECK: Duration = Duration::from_secs(1);
/// Longest message of pairing, and longest token.
pub const PAIRING_MESSAGE_BYTES_MAX: usize = 4096;
/// Time to wait for another process that finds or makes a pair: a few syncs, which a busy disk can hold up.
pub const PAIR_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to wait for another job that writes its book or the history of runs: a few syncs, which a busy disk can hold up. What a
/// run came to must not be lost for that.
pub const BOOK_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to wait for another process that changes the list of paired hosts: a few syncs, which a busy disk can hold up.
pub const CHANGE_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to wait for another run that makes snapshots in the same volume group: one lvm2 command may take its whole limit.
pub const GROUP_LOCK_TIMEOUT: Duration = Duration::from_secs(300);
/// Silence of the peer's kernel after which keepalives are sent, and the time between them.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Keepalives without an answer after which a connection counts as gone.
pub const KEEPALIVE_PROBES: u32 = 6;
/// How long a closing end takes in what the other still sends: bytes left unread would turn the close into
/// a reset, which destroys our last words on their way.
pub const LINGER: Duration = Duration::from_secs(2);

/// How often a wait looks at the stop flag.
pub const STOP_POLL: Duration = Duration::from_millis(200);
/// The most that one such look is counted as time in which a peer did not get on: where it took longer, this host stood still.
pub const TURN_COUNTED: Duration = Duration::from_secs(1);
/// Time without progress of the peer after which it counts as gone; `stall_timeout` and `--stall-timeout`
/// change it. A duration has no limit: progress is bytes moved, or work that the peer's pulses count.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Smallest stall limit: a busy peer pulses every two seconds, and one pulse may be late.
pub const STALL_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// Time for a program at the other end of a remote shell to greet, where no terminal is there that the shell may
/// be asking for a password: the far end of a pull makes its snapshot first.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(600);
/// How often a busy side tells its peer that it gets on.
pub const PULSE_INTERVAL: Duration = Duration::from_secs(2);
/// Time for the remote shell to end by itself after its stream is closed: a dead link must not hold a
/// run that has already given it up.
pub const LINK_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs of an agent at once unless its configuration says otherwise: each reads one disk and fills one line.
pub const AGENT_RUNS_DEFAULT: usize = 2;
/// Transfers of one run at once unless its job says otherwise.
pub const TRANSFERS_DEFAULT: usize = 2;
/// Back-off after the first transient failure.
pub const RETRY_INITIAL: Duration = Duration::from_secs(30);
/// Longest back-off: what comes back is tried again within half an hour.
pub const RETRY_MAX: Duration = Duration::from_secs(30 * 60);
/// Least time between two passes of a continuous job: one that finds nothing to do must not spin.
pub const CONTINUOUS_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Most of a random delay that a catch-up keeps: hosts that come back together do not arrive together, and one
/// that is up for an hour a day still gets its run.
pub const CATCH_UP_SPREAD: Duration = Duration::from_secs(10 * 60);
/// How often the agent looks at its jobs' books, at the clock and at what is due.
pub const AGENT_LOOK: Duration = Duration::from_secs(1);
/// Difference from which a clock that went back was put, and not only slowed down by a time server.
pub const CLOCK_BACK_MIN: Duration = Duration::from_secs(2);
/// Time after which nobody looked at a schedule, and from which a clock that went forward was put: what was due a
/// moment ago is not missed yet.
pub const UNWATCHED_MIN: Duration = Duration::from_secs(60);
/// How often the agent looks at how far behind replicas are.
pub const ALARM_INTERVAL: Duration = Duration::from_secs(60);
/// How often the agent writes the file for the textfile collector: node_exporter is scraped about as often.
pub const FIGURES_INTERVAL: Duration = Duration::from_secs(30);
/// Time until a job that somebody else runs is asked for again.
pub const LOCKED_RETRY: Duration = Duration::from_secs(5);
/// Longest question to the agent.
pub const QUESTION_BYTES_MAX: u64 = 4096;
/// Questions to the agent at once: each is a thread for a moment.
pub const ASKERS_MAX: usize = 16;
/// Time for a question to arrive, and for its answer.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer systemd is to wait for an agent or a receiver that stops, told again and again: a commit takes its time.
pub const STOP_EXTENSION: Duration = Duration::from_secs(60);
/// Time that a session waits for the one before it to let go of its replica: its source had the answer, and the device
/// is closed and made to refuse writes behind it.
pub const REPLICA_WAIT: Duration = Duration::from_secs(1);
/// Time to wait for a session that has a replica which is to be read: it has just committed, and ends.
pub const UPSTREAM_WAIT: Duration = Duration::from_secs(10);
/// Ticks counted as skipped by one run: a week of one each ten seconds.
pub const TICKS_COUNTED_MAX: usize = 100_000;
/// How long a run waits for a quiet volume where quiet_after is set and quiet_wait_max is not.
pub const QUIET_WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// Least interval that a job of passes back to back is held to: the last pass says how long the next will take, and
/// one that found nothing says nothing.
pub const CONTINUOUS_INTERVAL_MIN: Duration = Duration::from_secs(5 * 60);
/// Failures in a row after which a job that promises no age of its replicas is critical: nothing else would say so.
pub const FAILURES_CRITICAL: u32 = 3;

/// Callers of the page of figures at once: a Prometheus or two, and a person.
pub const METRICS_CALLERS_MAX: usize = 4;
/// Longest request to it.
pub const METRICS_REQUEST_BYTES_MAX: usize = 8 << 10;
/// Time for a request, and for taking the answer: a scrape is given up after ten seconds.
pub const METRICS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a wait for quiet looks at what was written.
pub const QUIET_POLL: Duration = Duration::from_millis(500);
/// Bytes of the history of runs, after which it is put aside; what was aside is dropped then. A run of two volumes takes
/// about 1 KiB: each half holds a month of runs every ten minutes.
pub const HISTORY_BYTES_MAX: u64 = 4 << 20;
