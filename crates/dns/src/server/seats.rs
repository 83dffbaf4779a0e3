//! Places for TCP connections: so many in all, and a quarter of them for one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The places. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    address: IpAddr,
}

impl Seats {
    /// So many.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Shared { max, taken: Mutex::default() }))
    }

    /// A place for a connection from `address`, if there is one.
    pub(super) fn take(&self, address: IpAddr) -> Option<Seat> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_address.get(&address).copied().unwrap_or_default();
        if taken.all >= self.0.max || own >= self.0.max.div_ceil(4) {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, own + 1);
        drop(taken);
        Some(Seat { seats: self.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        match taken.by_address.get_mut(&self.address) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by_address.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_takes_all_the_places() {
        let seats = Seats::new(8);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let first: Vec<Option<Seat>> = (0..3).map(|_| seats.take(address(1))).collect();
        assert_eq!(first.iter().flatten().count(), 2);
        let others: Vec<Option<Seat>> = (2..12).map(|n| seats.take(address(n))).collect();
        assert_eq!(others.iter().flatten().count(), 6);
        assert!(seats.take(address(99)).is_none());
        drop(first);
        assert!(seats.take(address(1)).is_some());
        drop(others);
        assert!(seats.0.taken.lock().unwrap().by_address.is_empty());
    }
}
