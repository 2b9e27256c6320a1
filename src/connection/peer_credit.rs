//! What is known of the peer's support for credit (docs/wire.md section 3).
//!
//! ```text
//! from                      event                              to
//! Unknown                   MAX_DATA                           Supported(Awaited)
//! Unknown                   payload without credit, silence    Unsupported
//! Unsupported               MAX_DATA                           Supported(Unlimited)
//! Supported(Awaited)        silence                            Supported(Unlimited)
//! any                       MAX_SUBSTREAMS                     Supported(Total)
//! ```
//!
//! A limit, `max_substreams`, comes in a frame about the connection and implies support.

/// What the peer has shown of credit: `max_data` on substreams, and `max_substreams`.
///
/// The only record of it for a connection. That of a substream is in its send buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerCredit {
    /// Nothing yet.
    Unknown,
    /// The first payload on a substream had no credit with it, or the peer stayed silent.
    Unsupported,
    /// The peer supports credit.
    Supported(PeerLimit),
}

/// The number of substreams that a peer with support for credit accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerLimit {
    /// Not announced yet.
    Awaited,
    /// Not announced in time: taken for unlimited.
    Unlimited,
    /// The total since the connection began.
    Total(u64),
}

impl PeerCredit {
    /// Whether the peer accepts frames of ours that carry credit and nothing else.
    pub(super) fn is_supported(self) -> bool {
        matches!(self, Self::Supported(_))
    }

    /// Whether the peer may still announce a limit before anything is opened beyond the early
    /// substreams.
    pub(super) fn awaits_limit(self) -> bool {
        matches!(self, Self::Unknown | Self::Supported(PeerLimit::Awaited))
    }

    /// A `max_data` arrived on any substream.
    pub(super) fn on_max_data(&mut self) {
        match self {
            Self::Unknown => *self = Self::Supported(PeerLimit::Awaited),
            // Opens no longer wait for a limit and do not begin to again.
            Self::Unsupported => *self = Self::Supported(PeerLimit::Unlimited),
            Self::Supported(_) => {}
        }
    }

    /// A `max_substreams` arrived. Limits never fall. Returns whether this one has an effect.
    pub(super) fn on_max_substreams(&mut self, max_substreams: u64) -> bool {
        if matches!(self, Self::Supported(PeerLimit::Total(total)) if *total >= max_substreams) {
            return false;
        }
        *self = Self::Supported(PeerLimit::Total(max_substreams));
        true
    }

    /// Payload arrived on a substream without a `max_data` on that substream.
    ///
    /// A peer that supports credit sends it with its first data.
    pub(super) fn on_payload_without_credit(&mut self) {
        if *self == Self::Unknown {
            *self = Self::Unsupported;
        }
    }

    /// No limit arrived within the time that opens wait for it.
    pub(super) fn on_silence(&mut self) {
        match self {
            Self::Unknown => *self = Self::Unsupported,
            Self::Supported(PeerLimit::Awaited) => *self = Self::Supported(PeerLimit::Unlimited),
            Self::Unsupported | Self::Supported(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PeerCredit::{Supported, Unknown, Unsupported};
    use super::PeerLimit::{Awaited, Total, Unlimited};
    use super::*;

    /// Every state and every event: `max_data`, a limit of 3, payload without credit, silence.
    #[test]
    fn transitions_of_peer_credit() {
        let table = [
            (
                Unknown,
                [
                    Supported(Awaited),
                    Supported(Total(3)),
                    Unsupported,
                    Unsupported,
                ],
            ),
            (
                Unsupported,
                [
                    Supported(Unlimited),
                    Supported(Total(3)),
                    Unsupported,
                    Unsupported,
                ],
            ),
            (
                Supported(Awaited),
                [
                    Supported(Awaited),
                    Supported(Total(3)),
                    Supported(Awaited),
                    Supported(Unlimited),
                ],
            ),
            (
                Supported(Unlimited),
                [
                    Supported(Unlimited),
                    Supported(Total(3)),
                    Supported(Unlimited),
                    Supported(Unlimited),
                ],
            ),
            (
                Supported(Total(2)),
                [
                    Supported(Total(2)),
                    Supported(Total(3)),
                    Supported(Total(2)),
                    Supported(Total(2)),
                ],
            ),
            (Supported(Total(4)), [Supported(Total(4)); 4]),
        ];
        for (before, expected) in table {
            let events: [fn(&mut PeerCredit); 4] = [
                PeerCredit::on_max_data,
                |credit| {
                    let before = *credit;
                    assert_eq!(credit.on_max_substreams(3), *credit != before);
                },
                PeerCredit::on_payload_without_credit,
                PeerCredit::on_silence,
            ];
            for (event, expected) in events.into_iter().zip(expected) {
                let mut credit = before;
                event(&mut credit);
                assert_eq!(credit, expected, "from {before:?}");
            }
        }
    }
}
