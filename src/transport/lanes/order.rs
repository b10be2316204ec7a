//! Pieces that come in any order and go on in that of their numbers. Pure.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Those that wait for one before them.
#[derive(Debug)]
pub struct Order<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for Order<T> {
    fn default() -> Order<T> {
        Order { next: 0, waiting: BTreeMap::new() }
    }
}

impl<T> Order<T> {
    /// One came. A number that came before is a lie.
    pub fn put(&mut self, number: u64, piece: T) -> Result<()> {
        if number < self.next || self.waiting.insert(number, piece).is_some() {
            return Err(Error::malformed(format!("piece {number} came twice")));
        }
        Ok(())
    }

    /// The next one, where it is there.
    pub fn next(&mut self) -> Option<T> {
        let next = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(next)
    }

    /// The number that everything waits for.
    pub fn awaited(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_order_they_go_on_by_their_numbers() {
        // All orders of five pieces.
        for order in 0..120_u64 {
            let (mut left, mut code): (Vec<u64>, _) = ((0..5).collect(), order);
            let (mut pieces, mut seen) = (Order::default(), Vec::new());
            while !left.is_empty() {
                let at = code % left.len() as u64;
                code /= left.len() as u64;
                let number = left.remove(at as usize);
                pieces.put(number, number * 10).unwrap();
                seen.extend(std::iter::from_fn(|| pieces.next()));
            }
            assert_eq!((seen, pieces.awaited()), (vec![0, 10, 20, 30, 40], 5), "order {order}");
        }
    }

    #[test]
    fn a_number_that_comes_twice_is_refused_before_and_after_its_turn() {
        let mut pieces = Order::default();
        pieces.put(1, ()).unwrap();
        assert!(pieces.put(1, ()).is_err());
        pieces.put(0, ()).unwrap();
        assert_eq!(std::iter::from_fn(|| pieces.next()).count(), 2);
        assert!(pieces.put(0, ()).is_err() && pieces.put(1, ()).is_err());
        assert!(pieces.put(2, ()).is_ok());
    }
}
