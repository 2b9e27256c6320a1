//! The Data Channel Establishment Protocol (RFC 8832), which opens a channel.

use crate::limits::MAX_LABEL;

/// The DATA_CHANNEL_ACK message (RFC 8832 section 5.2).
pub(super) const ACK: [u8; 1] = [0x02];

/// Type of DATA_CHANNEL_OPEN (RFC 8832 section 5.1).
const OPEN: u8 = 0x03;

/// Length of DATA_CHANNEL_OPEN before the label.
const OPEN_HEADER: usize = 12;

/// DATA_CHANNEL_RELIABLE: ordered and reliable. The other channel types set the bit 0x80 for
/// unordered, or have 1 or 2 in the low bits for partial reliability.
const RELIABLE: u8 = 0x00;

/// Priority "normal" (RFC 8831 section 6.4), as browsers send it.
const PRIORITY_NORMAL: u16 = 256;

/// A received DCEP message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dcep {
    /// DATA_CHANNEL_OPEN.
    Open {
        label: String,
        /// Ordered and reliable, so that the channel can carry a byte stream.
        fit: bool,
    },
    /// DATA_CHANNEL_ACK.
    Ack,
}

impl Dcep {
    /// Parses a message; `None` if it is invalid, or its label longer than accepted.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        match message {
            [0x02, ..] => Some(Self::Ack),
            [
                OPEN,
                channel_type,
                _,
                _,
                _,
                _,
                _,
                _,
                label_high,
                label_low,
                _,
                _,
                rest @ ..,
            ] => {
                let length = usize::from(u16::from_be_bytes([*label_high, *label_low]));
                if length > MAX_LABEL {
                    return None;
                }
                // What follows is the name of a subprotocol, which means nothing here.
                let label = std::str::from_utf8(rest.get(..length)?).ok()?;
                Some(Self::Open {
                    label: label.to_owned(),
                    fit: *channel_type == RELIABLE,
                })
            }
            _ => None,
        }
    }
}

/// A `DATA_CHANNEL_OPEN` for an ordered and reliable channel.
pub(super) fn encode_open(label: &str) -> Vec<u8> {
    // The caller has checked it against `MAX_LABEL`.
    let length = u16::try_from(label.len()).unwrap_or(u16::MAX);
    let mut message = Vec::with_capacity(OPEN_HEADER + label.len());
    message.extend_from_slice(&[OPEN, RELIABLE]);
    message.extend_from_slice(&PRIORITY_NORMAL.to_be_bytes());
    // Reliability parameter: none for a reliable channel.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&length.to_be_bytes());
    // No subprotocol.
    message.extend_from_slice(&[0; 2]);
    message.extend_from_slice(label.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_is_encoded_as_in_the_rfc_and_read_back() {
        let message = encode_open("ab");
        assert_eq!(message, [3, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'a', b'b']);
        let label = "ab".to_owned();
        assert_eq!(Dcep::parse(&message), Some(Dcep::Open { label, fit: true }));
    }

    #[test]
    fn a_subprotocol_is_skipped() {
        let mut message = encode_open("label");
        message[11] = 3;
        message.extend_from_slice(b"sub");
        let label = "label".to_owned();
        assert_eq!(Dcep::parse(&message), Some(Dcep::Open { label, fit: true }));
    }

    #[test]
    fn unordered_and_unreliable_channels_do_not_fit() {
        for channel_type in [0x80, 0x01, 0x81, 0x02, 0x82, 0x7f] {
            let mut message = encode_open("");
            message[1] = channel_type;
            assert!(matches!(
                Dcep::parse(&message),
                Some(Dcep::Open { fit: false, .. })
            ));
        }
    }

    #[test]
    fn cut_overlong_and_foreign_messages_are_none() {
        let whole = encode_open("label");
        for length in 0..whole.len() {
            assert_eq!(Dcep::parse(&whole[..length]), None, "{length}");
        }
        assert_eq!(Dcep::parse(&encode_open(&"x".repeat(MAX_LABEL + 1))), None);
        assert!(Dcep::parse(&encode_open(&"x".repeat(MAX_LABEL))).is_some());
        let mut text = encode_open("ab");
        text[12] = 0xff;
        assert_eq!(Dcep::parse(&text), None, "not UTF-8");
        assert_eq!(Dcep::parse(&[0x04, 0]), None);
        assert_eq!(Dcep::parse(&ACK), Some(Dcep::Ack));
    }
}
