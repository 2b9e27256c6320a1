//! Tests of the state shared by handles and driver.

use std::sync::Arc;

use super::config::{Config, ConfigError};
use super::error::OpenError;
use super::shared::{ConnectionShared, Findings, OpenRequest};
use crate::error::ConnectionError;
use crate::events::{ConnectionInfo, Initiator};

#[test]
fn an_open_after_the_end_fails_with_the_cause() {
    let shared = ConnectionShared::new(
        Arc::new(Config::default()),
        ConnectionInfo::new(Initiator::Local, None),
        Findings::default(),
    );
    shared.add_handle();
    shared.end(ConnectionError::ClosedByPeer);
    shared.end(ConnectionError::TimedOut);
    assert_eq!(
        shared.siblings.cause(),
        Some(ConnectionError::ClosedByPeer),
        "the first counts"
    );
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    shared.request_open(OpenRequest {
        label: String::new(),
        reply,
    });
    let answer = answer.try_recv().expect("answered at once");
    assert!(matches!(
        answer,
        Err(OpenError::Connection(ConnectionError::ClosedByPeer))
    ));
    assert!(shared.is_idle());
}

#[test]
fn a_ceiling_that_a_peer_within_its_window_could_meet_is_refused() {
    let mut config = Config::default();
    assert_eq!(config.validate(), Ok(()));
    config.receive_window = 4 * 1024 * 1024;
    assert!(matches!(
        config.validate(),
        Err(ConfigError::OutOfRange {
            name: "substream_ceiling",
            ..
        })
    ));
    config.substream_ceiling = 6 * 1024 * 1024;
    assert_eq!(config.validate(), Ok(()));
    config.open_timeout = std::time::Duration::ZERO;
    assert_eq!(
        config.validate(),
        Err(ConfigError::ZeroTimeout {
            name: "open_timeout"
        })
    );
}

#[test]
fn frames_longer_than_the_specification_allows_are_refused() {
    for (max_frame, max_frame_without_credit) in [(16_385, 8192), (16_384, 16_385), (16_384, 8)] {
        let config = Config {
            max_frame,
            max_frame_without_credit,
            ..Config::default()
        };
        assert!(
            config.validate().is_err(),
            "{max_frame}, {max_frame_without_credit}"
        );
    }
}
