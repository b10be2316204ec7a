//! The ways of a delta to its receiver: a second thread here, a remote shell, a daemon.

use super::delivery::{Delivery, Host};
use super::link::stall_argument;
use super::place::Place;
use super::receivers;
use super::replicas::HostReplicas;
use crate::error::{Kind, Result};
use crate::receiver::{self, Received};
use crate::sender::{self, Outcome, Pass, Scrub};
use crate::transport::{Wire, memory};

/// What is done over the wire.
type Talk<'a> = dyn FnMut(&mut Wire) -> Result<Outcome> + 'a;

/// Runs the pass against the delivery's receiver, wherever it is.
pub fn carry(host: &Host, delivery: &Delivery<'_>, pass: &mut Pass<'_>) -> Result<Outcome> {
    over(host, delivery, &mut |wire| sender::send(pass, wire))
}

/// Compares what the delivery's receiver holds with what was replicated to it.
pub fn carry_scrub(host: &Host, delivery: &Delivery<'_>, scrub: &mut Scrub<'_>) -> Result<Outcome> {
    over(host, delivery, &mut |wire| sender::scrub(scrub, wire))
}

fn over(host: &Host, delivery: &Delivery<'_>, talk: &mut Talk<'_>) -> Result<Outcome> {
    match &delivery.errand.target {
        Place::Local(_) => local(host, delivery, talk),
        Place::Remote { host: name, .. } => push(host, delivery, talk, name),
        Place::Receiver { address, .. } => deliver(host, delivery, talk, address),
    }
}

/// Both ends in this process.
fn local(host: &Host, delivery: &Delivery<'_>, talk: &mut Talk<'_>) -> Result<Outcome> {
    let (near, far) = memory::pair(&delivery.here.stop)?;
    let mut replicas = HostReplicas::new(host.state.clone(), host.choice);
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let mut wire = Wire::new(Box::new(far))?;
            receiver::receive(&mut wire, &mut replicas, delivery.there)
        });
        let sent = Wire::new(Box::new(near)).and_then(|mut wire| talk(&mut wire));
        let received = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, received)
    });
    better_of(sent, received)
}

/// Of two ends of one session, the one that knows why it failed.
fn better_of(sent: Result<Outcome>, received: Result<Received>) -> Result<Outcome> {
    match (sent, received) {
        (Err(_), Err(cause)) if !cause.is_from_peer() && !matches!(cause.kind(), Kind::Transient | Kind::Interrupted) => Err(cause),
        (Err(echo), Err(cause)) if echo.is_from_peer() => Err(cause),
        (sent, _) => sent,
    }
}

/// The receiver on another host.
fn push(host: &Host, delivery: &Delivery<'_>, talk: &mut Talk<'_>, name: &str) -> Result<Outcome> {
    let stall = stall_argument(&host.terms);
    let arguments: Vec<&str> = ["receiver", "--stdio"].into_iter().chain(stall.as_deref()).collect();
    let (link, wire) = delivery.errand.remote.connect(name, &arguments, host.choice, &host.terms, &delivery.here.stop)?;
    let result = wire.and_then(|mut wire| talk(&mut wire));
    link.close(result)
}

/// A receiver daemon.
fn deliver(host: &Host, delivery: &Delivery<'_>, talk: &mut Talk<'_>, address: &str) -> Result<Outcome> {
    let mut wire = receivers::wire(host, address, &delivery.errand, delivery.here)?;
    match talk(&mut wire) {
        // A signal that stopped the receiver is none to us: the next try may find it running again.
        Err(error) if error.is_from_peer() && error.kind() == Kind::Interrupted && !delivery.here.stopped() => {
            Err(error.with_kind(Kind::Transient))
        }
        other => other,
    }
}
