//! Close codes and reasons (RFC 6455 section 7.4).

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, error::CapacityError};

use super::error::WebSocketError;
use crate::connection::ConnectionError;

/// An orderly close.
pub(super) const NORMAL: u16 = 1000;
/// The peer leaves: a closed browser tab, a server that stops.
const GOING_AWAY: u16 = 1001;
/// A violation by the peer without a code of its own.
const POLICY_VIOLATION: u16 = 1008;
/// A close frame without a code.
const NO_STATUS: u16 = 1005;
/// First and last code for applications. Codes of `close_with` are added to the first. The codes
/// from 3000 up are errors: a page can send no 1002 or 1008, and sends 3002 or 3008 instead.
const PRIVATE: u16 = 4000;
const PRIVATE_LAST: u16 = 4999;
/// Maximum length of a reason, in bytes: a control frame has 125, of which the code takes two.
const MAX_REASON: usize = 123;

/// The close frame for the cause with which this side closes.
///
/// An application code below 1000 becomes 4000 + code, any other 4999. Peers that run this crate
/// have the exact code from the FIN on stream 0 before.
pub(super) fn frame_for(cause: &ConnectionError) -> CloseFrame {
    match cause {
        ConnectionError::ClosedWith { code, reason } => {
            let code = u16::try_from(*code)
                .ok()
                .and_then(|code| code.checked_add(PRIVATE))
                .map_or(PRIVATE_LAST, |code| code.min(PRIVATE_LAST));
            frame(code, reason)
        }
        cause if cause.is_orderly() => frame(NORMAL, ""),
        // The peer has exceeded a limit of this side.
        cause => frame(POLICY_VIOLATION, &cause.to_string()),
    }
}

pub(super) fn frame(code: u16, reason: &str) -> CloseFrame {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    CloseFrame {
        code: CloseCode::from(code),
        reason: reason.get(..end).unwrap_or_default().into(),
    }
}

/// The cause that a close frame of the peer stands for. `goodbye` is the code of its FIN on stream
/// 0, if it had one.
pub(super) fn cause_of(close: Option<&CloseFrame>, goodbye: Option<u32>) -> ConnectionError {
    let code = close.map_or(NO_STATUS, |close| close.code.into());
    let reason = close.map_or_else(String::new, |close| close.reason.to_string());
    match (code, goodbye) {
        // Only for an orderly close: the announced one may have failed afterwards.
        (NORMAL | NO_STATUS | GOING_AWAY | PRIVATE..=PRIVATE_LAST, Some(code)) => {
            ConnectionError::ClosedByPeerWith { code, reason }
        }
        (NORMAL | NO_STATUS, None) if reason.is_empty() => ConnectionError::ClosedByPeer,
        (GOING_AWAY, None) => ConnectionError::ClosedByPeer,
        (NORMAL | NO_STATUS | PRIVATE..=PRIVATE_LAST, None) => ConnectionError::ClosedByPeerWith {
            code: u32::from(code),
            reason,
        },
        (code, _) => WebSocketError::Closed { code, reason }.into(),
    }
}

/// The close code for an error; `None` if the peer is gone.
pub(super) fn code_for(error: &WebSocketError) -> Option<u16> {
    Some(match error {
        WebSocketError::Closed { .. } | WebSocketError::Io { .. } | WebSocketError::Lost => {
            return None;
        }
        WebSocketError::EmptyMessage
        | WebSocketError::Framing(_)
        | WebSocketError::MissingLabel { .. }
        | WebSocketError::MissingStream
        | WebSocketError::Protocol(_)
        | WebSocketError::UnexpectedLabel { .. }
        | WebSocketError::UnexpectedStream { .. } => 1002,
        WebSocketError::Text => 1003,
        WebSocketError::InvalidUtf8 => 1007,
        WebSocketError::NotReading { .. } => POLICY_VIOLATION,
        WebSocketError::MessageTooLong { .. } => 1009,
    })
}

/// Converts an error of tungstenite.
pub(super) fn engine_error(error: Error) -> WebSocketError {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
            WebSocketError::MessageTooLong {
                size,
                max: max_size,
            }
        }
        Error::Io(error) => WebSocketError::Io {
            kind: error.kind(),
            message: error.to_string(),
        },
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => WebSocketError::Lost,
        Error::Utf8(_) => WebSocketError::InvalidUtf8,
        Error::Protocol(error) => WebSocketError::Protocol(error.to_string()),
        other => WebSocketError::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(code: u32, reason: &str) -> (u16, String) {
        let frame = frame_for(&ConnectionError::ClosedWith {
            code,
            reason: reason.to_owned(),
        });
        (frame.code.into(), frame.reason.to_string())
    }

    #[test]
    fn o8_codes_of_the_application_are_private_codes() {
        assert_eq!(sent(7, "bye"), (4007, "bye".to_owned()));
        assert_eq!(sent(999, ""), (4999, String::new()));
        assert_eq!(sent(70_000, ""), (4999, String::new()));
        let long = "ü".repeat(100);
        assert_eq!(
            sent(0, &long).1,
            "ü".repeat(61),
            "122 bytes, not a half letter"
        );
    }

    #[test]
    fn o4_o9_closes_of_the_peer_have_causes() {
        let with = |code: u32, reason: &str| ConnectionError::ClosedByPeerWith {
            code,
            reason: reason.to_owned(),
        };
        assert_eq!(cause_of(None, None), ConnectionError::ClosedByPeer);
        let failed = |code: u16, reason: &str| {
            ConnectionError::WebSocket(WebSocketError::Closed {
                code,
                reason: reason.to_owned(),
            })
        };
        for (code, reason, goodbye, cause) in [
            (1000, "", None, ConnectionError::ClosedByPeer),
            (1001, "tab", None, ConnectionError::ClosedByPeer),
            (1000, "done", None, with(1000, "done")),
            (4007, "bye", None, with(4007, "bye")),
            (4999, "bye", Some(70_000), with(70_000, "bye")),
            (1011, "crash", None, failed(1011, "crash")),
            // Violations that a page reports, also after its goodbye.
            (3002, "no frames", None, failed(3002, "no frames")),
            (3008, "a limit", Some(7), failed(3008, "a limit")),
        ] {
            assert_eq!(
                cause_of(Some(&frame(code, reason)), goodbye),
                cause,
                "{code}"
            );
            assert_eq!(cause.is_orderly(), ![1011, 3002, 3008].contains(&code));
        }
    }
}
