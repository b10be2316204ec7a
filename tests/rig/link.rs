//! A link that the test itself carries: it counts what the sender says, stalls at a given byte, and is
//! cut or goes on when the test wants it.

use crate::ferry::Ferry;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// `up` comes from the program on this side, `down` goes to the one that the shell runs. The way back is direct. A sender that waits
/// in vain kills this shell, as it would kill ssh; the program, as if on its own host, goes on to its end.
const SHELL: &str = r#"folder=$1
shift 2
exec 3<&0
cat <&3 >"$folder/up" &
exec 3<&-
(sh -c "$*" <"$folder/down") &
wait $!
"#;

/// One session's way from the sender to the receiver.
pub struct Link {
    pub shell: String,
    stalled: Receiver<()>,
    go_on: Option<Sender<()>>,
    carrier: Option<JoinHandle<()>>,
}

impl Link {
    /// A link that stalls once it carried `bytes`.
    pub fn stalling_after(ferry: &Ferry, bytes: usize) -> Link {
        let script = ferry.path("link.sh");
        fs::write(&script, SHELL).expect("a script");
        let ends = [ferry.path("up"), ferry.path("down")];
        for end in &ends {
            let _ = fs::remove_file(end);
            mkfifo(end, Mode::from_bits_truncate(0o600)).expect("a named pipe");
        }
        let (stall, stalled) = channel();
        let (go_on, going) = channel::<()>();
        let carrier = std::thread::spawn(move || {
            let mut up = File::open(&ends[0]).expect("the sender's end");
            let mut down = File::options().write(true).open(&ends[1]).expect("the receiver's end");
            carry(&mut up, &mut down, bytes);
            let _ = stall.send(());
            // A cut is a sender of `going` that is dropped.
            if going.recv().is_ok() {
                carry(&mut up, &mut down, usize::MAX);
            }
        });
        let shell = format!("sh {} {}", script.display(), ferry.name(""));
        Link { shell, stalled, go_on: Some(go_on), carrier: Some(carrier) }
    }

    /// Waits until the link stalls.
    pub fn wait(&self) {
        self.stalled.recv_timeout(Duration::from_secs(240)).expect("the link never carried that much");
    }

    /// Lets everything else pass.
    pub fn go_on(&mut self) {
        if let Some(go_on) = self.go_on.take() {
            let _ = go_on.send(());
        }
    }

    /// Closes both directions at once, in the middle of whatever it carried.
    pub fn cut(&mut self) {
        drop(self.go_on.take());
        if let Some(carrier) = self.carrier.take() {
            carrier.join().expect("the link");
        }
    }
}

/// Moves bytes until the limit, an end, or somebody who no longer listens.
fn carry(up: &mut File, down: &mut File, mut bytes: usize) {
    let mut piece = vec![0; 64 << 10];
    while bytes > 0 {
        let room = bytes.min(piece.len());
        let Ok(count @ 1..) = up.read(&mut piece[..room]) else { return };
        if down.write_all(&piece[..count]).is_err() {
            return;
        }
        bytes -= count;
    }
}
