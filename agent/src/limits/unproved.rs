//! Peers that nobody knows yet, by address. When all places are taken, the address with most of
//! them gives one up: a flood crowds out itself, and not somebody who comes from elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use tokio_util::sync::CancellationToken;

/// Those in one waiting room, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    here: BTreeMap<u64, Stranger>,
    by_address: HashMap<IpAddr, usize>,
    /// Those that were told to go and are not gone.
    leaving: usize,
    next: u64,
}

#[derive(Debug)]
struct Stranger {
    address: IpAddr,
    leave: CancellationToken,
}

impl Strangers {
    pub(super) fn len(&self) -> usize {
        self.here.len() + self.leaving
    }

    pub(super) fn of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    /// One more; its number, and what tells it to go.
    pub(super) fn add(&mut self, address: IpAddr) -> (u64, CancellationToken) {
        let (number, leave) = (self.next, CancellationToken::new());
        self.next += 1;
        *self.by_address.entry(address).or_default() += 1;
        let stranger = Stranger {
            address,
            leave: leave.clone(),
        };
        self.here.insert(number, stranger);
        (number, leave)
    }

    /// It is gone, or somebody now.
    pub(super) fn remove(&mut self, number: u64) {
        match self.here.remove(&number) {
            Some(stranger) => self.count_down(stranger.address),
            None => self.leaving = self.leaving.saturating_sub(1),
        }
    }

    /// Makes a place among `places` for `address`: the oldest of the address that has most goes, if
    /// those are more than `address` has and `spared` beyond. `false` when nobody has so many, or
    /// when too many are still on their way out.
    pub(super) fn make_room(&mut self, address: IpAddr, places: usize, spared: usize) -> bool {
        if self.here.len() < places {
            return true;
        }
        if self.leaving >= places.div_ceil(8) {
            return false;
        }
        let most = self.by_address.iter().max_by_key(|(_, count)| **count);
        let Some((&crowd, _)) = most.filter(|(_, count)| **count > self.of(address) + spared)
        else {
            return false;
        };
        let oldest = self.here.iter().find(|(_, one)| one.address == crowd);
        let Some(number) = oldest.map(|(number, _)| *number) else {
            return false;
        };
        if let Some(stranger) = self.here.remove(&number) {
            self.count_down(stranger.address);
            self.leaving += 1;
            stranger.leave.cancel();
        }
        true
    }

    fn count_down(&mut self, address: IpAddr) {
        if let Some(count) = self.by_address.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}
