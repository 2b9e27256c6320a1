//! Stream ids: which side owns them, and which are free (RFC 8832 section 6).

use std::collections::{HashMap, HashSet, VecDeque};

use crate::engine::OpenError;
use crate::engine::Role;

/// RFC 8832 section 6 excludes 65 535.
const MAX_STREAM_ID: u16 = 65_534;

/// The stream ids of an association.
#[derive(Debug)]
pub(super) struct StreamIds {
    role: Role,
    next: u16,
    /// Own ids to reuse, oldest first.
    free: VecDeque<u16>,
    /// Own ids that are in use. A peer may use one of ours, and close it.
    in_use: HashSet<u16>,
    /// Ids with outgoing resets that are unacknowledged or failed, and their number: not writable.
    resetting: HashMap<u16, u32>,
}

impl StreamIds {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            next: match role {
                // Id 0 is channel 0.
                Role::Client => 2,
                Role::Server => 1,
            },
            free: VecDeque::new(),
            in_use: HashSet::new(),
            resetting: HashMap::new(),
        }
    }

    /// Whether this side assigns the id: the DTLS client owns the even ones.
    pub(super) fn owns(&self, id: u16) -> bool {
        id.is_multiple_of(2) == (self.role == Role::Client)
    }

    /// A free id of ours, within the limit of a peer with `max_streams` inbound streams.
    ///
    /// Each id is used once before any is reused: go-libp2p keeps an id until its application
    /// closes the stream, and ends the connection when a channel is opened on an id that it keeps.
    /// usrsctp accepts 1 024 or 2 048 streams by default, all others 65 535.
    ///
    /// # Errors
    /// `NotNow` if an id becomes free once the close of a channel is complete.
    pub(super) fn take(&mut self, max_streams: u16) -> Result<u16, OpenError> {
        let last = MAX_STREAM_ID.min(max_streams.saturating_sub(1));
        let id = if self.next <= last {
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
        self.in_use.insert(id);
        Ok(id)
    }

    /// A reset of our direction has started.
    pub(super) fn begin_reset(&mut self, id: u16) {
        *self.resetting.entry(id).or_default() += 1;
    }

    /// A reset of our direction is acknowledged. `used` is whether the id has a channel again.
    /// Returns whether the id is writable again.
    pub(super) fn complete_reset(&mut self, id: u16, used: bool) -> bool {
        match self.resetting.get_mut(&id) {
            None => return false,
            Some(1) => self.resetting.remove(&id),
            Some(count) => {
                *count -= 1;
                return false;
            }
        };
        if !used && self.in_use.remove(&id) {
            self.free.push_back(id);
        }
        true
    }

    pub(super) fn is_resetting(&self, id: u16) -> bool {
        self.resetting.contains_key(&id)
    }

    /// Whether no reset is pending.
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
        let (mut client, mut server) = (StreamIds::new(Role::Client), StreamIds::new(Role::Server));
        for expected in 1..100 {
            assert_eq!(client.take(u16::MAX), Ok(2 * expected));
            assert_eq!(server.take(u16::MAX), Ok(2 * expected - 1));
            assert!(client.owns(2 * expected) && !server.owns(2 * expected));
        }
    }

    /// Takes an id and closes its channel again.
    fn take_and_close(ids: &mut StreamIds, max_streams: u16) -> u16 {
        let id = ids.take(max_streams).expect("a number");
        ids.begin_reset(id);
        assert!(ids.complete_reset(id, false));
        id
    }

    #[test]
    fn no_number_is_used_again_before_all_were_used_that_the_peer_takes() {
        for (max_streams, fresh) in [(u16::MAX, 32_767), (1024, 511), (3, 1)] {
            let mut ids = StreamIds::new(Role::Client);
            let mut seen = HashSet::new();
            for _ in 0..fresh {
                let id = take_and_close(&mut ids, max_streams);
                assert!(id < max_streams && seen.insert(id), "{id}");
            }
            assert_eq!(take_and_close(&mut ids, max_streams), 2, "the oldest");
        }
    }

    #[test]
    fn numbers_run_out_and_come_back() {
        for role in [Role::Client, Role::Server] {
            let mut ids = StreamIds::new(role);
            let all: Vec<u16> = std::iter::from_fn(|| ids.take(u16::MAX).ok()).collect();
            assert!(all.len() >= 32_767 && all.iter().all(|id| *id <= MAX_STREAM_ID));
            assert_eq!(ids.take(u16::MAX), Err(OpenError::Exhausted));
            ids.begin_reset(all[7]);
            assert!(ids.is_resetting(all[7]));
            assert_eq!(ids.take(u16::MAX), Err(OpenError::NotNow));
            assert!(ids.complete_reset(all[7], false));
            assert_eq!(ids.take(u16::MAX), Ok(all[7]));
            assert_eq!(ids.take(u16::MAX), Err(OpenError::Exhausted));
        }
    }

    #[test]
    fn a_number_is_free_after_the_last_of_its_resets() {
        let mut ids = StreamIds::new(Role::Client);
        ids.begin_reset(2);
        ids.begin_reset(2);
        assert!(!ids.complete_reset(2, false));
        assert!(ids.is_resetting(2));
        assert!(ids.complete_reset(2, true));
        assert!(!ids.complete_reset(2, false), "nothing was under way");
    }
}
