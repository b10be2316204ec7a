//! Where further connections find their sessions: by the token that a session offered, and only from who holds the
//! key that the session is with.

use crate::error::{Context, Kind, Result};
use crate::format::lane::LANE_TOKEN_BYTES;
use crate::format::stream::LaneOffer;
use crate::pin::Pin;
use crate::transport::lanes::{Gather, Seat, Seats, gathering};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Token = [u8; LANE_TOKEN_BYTES];

/// The sessions that may have further connections.
#[derive(Default)]
pub struct Desk(Mutex<BTreeMap<Token, (Pin, Seats)>>);

/// A session's entry; dropped = nobody comes to it any more.
pub struct Entry<'a> {
    desk: &'a Desk,
    token: Token,
}

impl Desk {
    /// An entry for a session with the holder of this key, what it is to offer, and where what comes is gathered.
    pub fn open(&self, pin: Pin, most: usize) -> Result<(Entry<'_>, LaneOffer, Gather)> {
        let mut token = [0; LANE_TOKEN_BYTES];
        getrandom::fill(&mut token).context(Kind::Failed, || "ask the system for random numbers")?;
        let (seats, gather) = gathering(most);
        self.all().insert(token, (pin, seats));
        Ok((Entry { desk: self, token }, LaneOffer { token, most: most as u32 }, gather))
    }

    /// A place in the session of this token. One answer for a token that is none, another's, and one too many.
    pub fn seat(&self, token: &Token, pin: &Pin) -> Option<Seat> {
        self.all().get(token).filter(|(owner, _)| owner == pin).and_then(|(_, seats)| seats.take())
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Token, (Pin, Seats)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.desk.all().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sessions_own_key_with_its_token_gets_a_place_and_only_while_it_is_open() {
        let (desk, own, other) = (Desk::default(), Pin::of(b"own"), Pin::of(b"other"));
        let (entry, offer, _gather) = desk.open(own, 2).unwrap();
        let (_another, second, _) = desk.open(other, 2).unwrap();
        assert_ne!(offer.token, second.token);
        assert!(desk.seat(&offer.token, &other).is_none() && desk.seat(&second.token, &own).is_none());
        assert!(desk.seat(&[0; LANE_TOKEN_BYTES], &own).is_none());
        let places = [desk.seat(&offer.token, &own), desk.seat(&offer.token, &own), desk.seat(&offer.token, &own)];
        assert_eq!(places.map(|place| place.is_some()), [true, true, false]);
        drop(entry);
        assert!(desk.seat(&offer.token, &own).is_none() && desk.all().len() == 1);
    }
}
