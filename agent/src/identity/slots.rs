//! How many enrolments may go on at one time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Enrolments that may ask STS at one time, in all and from one address: a login is an
/// amplifier towards STS.
pub(super) struct Slots {
    most: usize,
    most_each: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One enrolment that asks STS; gives its place back when dropped.
pub(super) struct Slot {
    address: IpAddr,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Slots {
    pub(super) fn new(most: usize, most_each: usize) -> Self {
        Self {
            most,
            most_each,
            taken: Arc::default(),
        }
    }

    pub(super) fn take(&self, address: IpAddr) -> Option<Slot> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(|e| e.into_inner());
        let all: usize = taken.values().sum();
        let each = taken.get(&address).copied().unwrap_or(0);
        if all >= self.most || each >= self.most_each {
            return None;
        }
        taken.insert(address, each + 1);
        Some(Slot {
            address,
            taken: self.taken.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enrolments_at_one_time_are_bounded_in_all_and_for_one_address() {
        let slots = Slots::new(3, 2);
        let (one, two): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let first = slots.take(one).unwrap();
        let _second = slots.take(mapped).unwrap();
        assert!(slots.take(one).is_none());
        let _third = slots.take(two).unwrap();
        assert!(slots.take(two).is_none());
        drop(first);
        assert!(slots.take(one).is_some());
        assert_eq!(slots.taken.lock().unwrap().values().sum::<usize>(), 2);
    }
}
