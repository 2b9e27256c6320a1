//! Stream numbers: whose they are, and which are free (RFC 8832 section 6).

use std::collections::{HashMap, HashSet, VecDeque};

use crate::engine::OpenError;
use crate::engine::Role;

/// RFC 8832 section 6 keeps 65 535 out.
const LAST_NUMBER: u16 = 65_534;

/// The numbers of an association.
#[derive(Debug)]
pub(super) struct Numbers {
    role: Role,
    next: u16,
    /// Own numbers to use again, oldest first.
    free: VecDeque<u16>,
    /// Own numbers that were given out and are not free again. A peer may use one of ours, and close it.
    taken: HashSet<u16>,
    /// Numbers whose outgoing resets are not acknowledged, or failed, with how many: nothing can
    /// be written.
    resetting: HashMap<u16, u32>,
}

impl Numbers {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            next: match role {
                // Number 0 is channel 0.
                Role::Client => 2,
                Role::Server => 1,
            },
            free: VecDeque::new(),
            taken: HashSet::new(),
            resetting: HashMap::new(),
        }
    }

    /// Whether we give the number out: the DTLS client has the even ones.
    pub(super) fn owns(&self, number: u16) -> bool {
        number.is_multiple_of(2) == (self.role == Role::Client)
    }

    /// A number of ours that no channel has, of those that a peer with `max_streams` inbound streams takes.
    ///
    /// Each is used once before any is used again: go-libp2p keeps a number until its application closes the
    /// stream, and ends the connection when a channel comes on one that it keeps. usrsctp takes 1 024 or 2 048
    /// streams by default, all others 65 535.
    ///
    /// # Errors
    /// `NotNow` where a number will be free when the close of a channel is complete.
    pub(super) fn take(&mut self, max_streams: u16) -> Result<u16, OpenError> {
        let last = LAST_NUMBER.min(max_streams.saturating_sub(1));
        let number = if self.next <= last {
            let fresh = self.next;
            self.next = fresh.saturating_add(2);
            fresh
        } else if let Some(used) = self.free.pop_front() {
            used
        } else if self.resetting.is_empty() {
            return Err(OpenError::Exhausted);
        } else {
            return Err(OpenError::NotNow);
        };
        self.taken.insert(number);
        Ok(number)
    }

    /// Our side of a channel is being reset.
    pub(super) fn begin_reset(&mut self, number: u16) {
        *self.resetting.entry(number).or_default() += 1;
    }

    /// A reset of our side is acknowledged. `used` says whether the number has a channel again.
    /// Returns whether the number can be written to again.
    pub(super) fn complete_reset(&mut self, number: u16, used: bool) -> bool {
        match self.resetting.get_mut(&number) {
            None => return false,
            Some(1) => self.resetting.remove(&number),
            Some(count) => {
                *count -= 1;
                return false;
            }
        };
        if !used && self.taken.remove(&number) {
            self.free.push_back(number);
        }
        true
    }

    pub(super) fn is_resetting(&self, number: u16) -> bool {
        self.resetting.contains_key(&number)
    }

    /// Whether no reset is under way.
    #[cfg(feature = "testing")]
    pub(super) fn is_idle(&self) -> bool {
        self.resetting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_even_numbers_and_servers_odd_ones() {
        let (mut client, mut server) = (Numbers::new(Role::Client), Numbers::new(Role::Server));
        for expected in 1..100 {
            assert_eq!(client.take(u16::MAX), Ok(2 * expected));
            assert_eq!(server.take(u16::MAX), Ok(2 * expected - 1));
            assert!(client.owns(2 * expected) && !server.owns(2 * expected));
        }
    }

    /// Takes a number and closes its channel again.
    fn take_and_close(numbers: &mut Numbers, max_streams: u16) -> u16 {
        let number = numbers.take(max_streams).expect("a number");
        numbers.begin_reset(number);
        assert!(numbers.complete_reset(number, false));
        number
    }

    #[test]
    fn no_number_is_used_again_before_all_were_used_that_the_peer_takes() {
        for (max_streams, fresh) in [(u16::MAX, 32_767), (1024, 511), (3, 1)] {
            let mut numbers = Numbers::new(Role::Client);
            let mut seen = HashSet::new();
            for _ in 0..fresh {
                let number = take_and_close(&mut numbers, max_streams);
                assert!(number < max_streams && seen.insert(number), "{number}");
            }
            assert_eq!(take_and_close(&mut numbers, max_streams), 2, "the oldest");
        }
    }

    #[test]
    fn numbers_run_out_and_come_back() {
        for role in [Role::Client, Role::Server] {
            let mut numbers = Numbers::new(role);
            let all: Vec<u16> = std::iter::from_fn(|| numbers.take(u16::MAX).ok()).collect();
            assert!(all.len() >= 32_767 && all.iter().all(|number| *number <= LAST_NUMBER));
            assert_eq!(numbers.take(u16::MAX), Err(OpenError::Exhausted));
            numbers.begin_reset(all[7]);
            assert!(numbers.is_resetting(all[7]));
            assert_eq!(numbers.take(u16::MAX), Err(OpenError::NotNow));
            assert!(numbers.complete_reset(all[7], false));
            assert_eq!(numbers.take(u16::MAX), Ok(all[7]));
            assert_eq!(numbers.take(u16::MAX), Err(OpenError::Exhausted));
        }
    }

    #[test]
    fn a_number_is_free_after_the_last_of_its_resets() {
        let mut numbers = Numbers::new(Role::Client);
        numbers.begin_reset(2);
        numbers.begin_reset(2);
        assert!(!numbers.complete_reset(2, false));
        assert!(numbers.is_resetting(2));
        assert!(numbers.complete_reset(2, true));
        assert!(!numbers.complete_reset(2, false), "nothing was under way");
    }
}
