//! The HTTP upgrade, on both sides (RFC 6455 sections 4.1 and 4.2).

use std::sync::Arc;

use tokio_tungstenite::tungstenite::error::{ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::http;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig as EngineConfig;
use tokio_tungstenite::tungstenite::{Error, error::CapacityError};

use super::close::engine_error;
use super::config::{Authentication, ServerConfig, WebSocketConfig};
use super::error::{HandshakeError, HandshakePhase, UpgradeError};
use super::request::RequestHead;
use super::tls::Presented;
use crate::connection::{Attachment, ConnectionError};

/// Size of tungstenite's read buffer. A larger one would be zeroed for each small message, which is
/// a slice of it.
pub(super) const READ_BUFFER: usize = 32 * 1024;

/// The same before Noise has succeeded: its messages have a few hundred bytes.
const UNPROVEN_READ_BUFFER: usize = 1024;

/// Maximum length of a message, and of a frame, before Noise has succeeded: a Noise message (at
/// most 4 KiB) with its framing.
pub(super) const MAX_UNPROVEN_MESSAGE: usize = 4096 + 128;

/// Maximum bytes of queued pongs before Noise has succeeded.
const UNPROVEN_BACKLOG: usize = 1024;

/// The limits in the configuration of tungstenite (row O-2: they have to reach it).
pub(super) fn engine_config(config: &WebSocketConfig) -> EngineConfig {
    engine_of(config, READ_BUFFER)
}

/// The same, for a server with an unauthenticated peer.
pub(super) fn unproven_engine_config(config: &WebSocketConfig) -> EngineConfig {
    engine_of(&unproven(config), UNPROVEN_READ_BUFFER)
}

/// The limits for an unauthenticated peer.
pub(super) fn unproven(config: &WebSocketConfig) -> WebSocketConfig {
    WebSocketConfig {
        max_message: MAX_UNPROVEN_MESSAGE,
        batch: MAX_UNPROVEN_MESSAGE,
        control_backlog: UNPROVEN_BACKLOG,
        ..config.clone()
    }
}

fn engine_of(config: &WebSocketConfig, read_buffer: usize) -> EngineConfig {
    EngineConfig::default()
        .read_buffer_size(read_buffer)
        // One message is passed at a time, and always flushed.
        .write_buffer_size(config.batch)
        .max_message_size(Some(config.max_message))
        .max_frame_size(Some(config.max_message))
}

/// A valid upgrade request, for programs with an HTTP server of their own.
///
/// Answer it with status 101 and the headers of [`UpgradeRequest::response_headers`], and pass the
/// upgraded stream to [`accept_upgraded`](super::accept_upgraded). `examples/websocket_server.rs`
/// does so with hyper.
#[derive(Debug, Clone)]
pub struct UpgradeRequest {
    accept: String,
    subprotocol: &'static str,
    attachment: Option<Attachment>,
}

/// By what is answered, and by the attachment: its clones are equal, two values never are.
impl PartialEq for UpgradeRequest {
    fn eq(&self, other: &Self) -> bool {
        let have_one_attachment = match (&self.attachment, &other.attachment) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        let answer = (&self.accept, self.subprotocol);
        have_one_attachment && answer == (&other.accept, other.subprotocol)
    }
}

impl Eq for UpgradeRequest {}

impl UpgradeRequest {
    /// What the hook has returned
    /// ([`RequestPolicy::with_hook`](super::RequestPolicy::with_hook)); `None` if it is of another
    /// type, and without a hook. The connection over the upgraded stream does not have it.
    pub fn attachment<T: std::any::Any + Send + Sync>(&self) -> Option<&T> {
        self.attachment.as_ref()?.downcast_ref()
    }

    pub(super) fn into_attachment(self) -> Option<Attachment> {
        self.attachment
    }

    /// Checks a request against RFC 6455, against [`ServerConfig::requests`], and for the
    /// subprotocol of [`ServerConfig::authentication`]. With `None` as its paths, routing is left
    /// to the caller.
    ///
    /// # Errors
    /// [`UpgradeError`]; [`UpgradeError::answer`] is the response to send.
    pub fn check(request: &RequestHead<'_>, config: &ServerConfig) -> Result<Self, UpgradeError> {
        let policy = &config.requests;
        request.check()?;
        policy.check_host(request)?;
        policy.check_path(request)?;
        if request.method() != "GET" {
            return Err(UpgradeError::WrongMethod);
        }
        let has = |name: &str, token: &str| {
            request
                .members(name)
                .any(|member| member.eq_ignore_ascii_case(token))
        };
        // HTTP/1.0 has no upgrade, whatever its headers are (RFC 9110 section 7.8).
        if request.is_http_1_0() || !has("connection", "upgrade") {
            return Err(UpgradeError::MissingConnection);
        }
        if !has("upgrade", "websocket") {
            return Err(UpgradeError::MissingUpgrade);
        }
        if request.single("sec-websocket-version")? != Some("13") {
            return Err(UpgradeError::WrongVersion);
        }
        let key = request
            .single("sec-websocket-key")?
            .ok_or(UpgradeError::InvalidKey)?;
        // 16 bytes in base64.
        let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
        let valid = key
            .strip_suffix("==")
            .is_some_and(|key| key.len() == 22 && key.bytes().all(is_base64));
        if !valid {
            return Err(UpgradeError::InvalidKey);
        }
        policy.check_origin(request, &config.authentication)?;
        let subprotocol = choose(request, &config.authentication)?;
        let attachment = policy.ask_hook(request)?;
        Ok(Self {
            attachment,
            accept: derive_accept_key(key.as_bytes()),
            subprotocol,
        })
    }

    /// The headers of the response.
    pub fn response_headers(&self) -> [(&'static str, &str); 4] {
        [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-accept", &self.accept),
            ("sec-websocket-protocol", self.subprotocol),
        ]
    }

    /// Encodes the response.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut text = "HTTP/1.1 101 Switching Protocols\r\n".to_owned();
        for (name, value) in self.response_headers() {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// The subprotocol of the response, if the client offers it.
fn choose(
    request: &RequestHead<'_>,
    authentication: &Authentication,
) -> Result<&'static str, UpgradeError> {
    let wanted = authentication.subprotocol();
    let offers = || request.members("sec-websocket-protocol");
    if offers().any(|offer| offer == wanted) {
        return Ok(wanted);
    }
    Err(UpgradeError::SubprotocolMismatch {
        offered: offers().map(str::to_owned).collect(),
        returned: None,
    })
}

/// The upgrade request of a client.
pub(super) fn request(
    url: &str,
    authentication: &Authentication,
    headers: &[(String, String)],
) -> Result<http::Request<()>, HandshakeError> {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let malformed = |error: &dyn std::fmt::Display| UpgradeError::Malformed(error.to_string());
    let mut request = url
        .into_client_request()
        .map_err(|error| malformed(&error))?;
    let subprotocol = http::HeaderValue::from_static(authentication.subprotocol());
    request
        .headers_mut()
        .insert(http::header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(|e| malformed(&e))?;
        let value = http::HeaderValue::from_str(value).map_err(|e| malformed(&e))?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// Checks what tungstenite does not: that the response selects no extension, and exactly one
/// subprotocol.
pub(super) fn check_response(
    response: &http::Response<Option<Vec<u8>>>,
    authentication: &Authentication,
) -> Result<(), UpgradeError> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if let Some(extension) = response
        .headers()
        .get(http::header::SEC_WEBSOCKET_EXTENSIONS)
    {
        return Err(UpgradeError::UnsupportedExtension(text(extension)));
    }
    let offered = authentication.subprotocol();
    let mut returned = response
        .headers()
        .get_all(http::header::SEC_WEBSOCKET_PROTOCOL)
        .iter();
    match (returned.next().map(text), returned.next()) {
        (Some(first), None) if first == offered => Ok(()),
        (first, second) => {
            let all = first.map(|first| match second {
                Some(second) => format!("{first}, {}", text(second)),
                None => first,
            });
            Err(mismatch(offered, all))
        }
    }
}

fn mismatch(offered: &str, returned: Option<String>) -> UpgradeError {
    UpgradeError::SubprotocolMismatch {
        offered: vec![offered.to_owned()],
        returned,
    }
}

/// Converts an error of tungstenite's client handshake.
pub(super) fn upgrade_failed(
    error: Error,
    authentication: &Authentication,
    presented: Presented,
) -> HandshakeError {
    let offered = authentication.subprotocol();
    let error = match error {
        // With TLS 1.3 the server refuses a client certificate after the handshake of the client.
        Error::Io(error) => match HandshakeError::reported(error, presented) {
            Ok(refusal) => return refusal,
            Err(error) => Error::Io(error),
        },
        error => error,
    };
    let error = match error {
        Error::Http(response) => UpgradeError::UnexpectedStatus {
            status: response.status().as_u16(),
        },
        Error::Protocol(ProtocolError::MissingConnectionUpgradeHeader) => {
            UpgradeError::MissingConnection
        }
        Error::Protocol(ProtocolError::MissingUpgradeWebSocketHeader) => {
            UpgradeError::MissingUpgrade
        }
        Error::Protocol(ProtocolError::SecWebSocketAcceptKeyMismatch) => {
            UpgradeError::InvalidAccept
        }
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(error)) => {
            let returned = match error {
                SubProtocolError::NoSubProtocol => None,
                other => Some(other.to_string()),
            };
            mismatch(offered, returned)
        }
        Error::Capacity(CapacityError::TooManyHeaders) | Error::AttackAttempt => {
            UpgradeError::Malformed("too many or too long headers".to_owned())
        }
        error @ (Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed) => {
            return HandshakeError::Ended {
                phase: HandshakePhase::Upgrade,
                cause: ConnectionError::WebSocket(engine_error(error)),
            };
        }
        Error::Protocol(ProtocolError::HandshakeIncomplete) => {
            return HandshakeError::Ended {
                phase: HandshakePhase::Upgrade,
                cause: ConnectionError::WebSocket(super::WebSocketError::Lost),
            };
        }
        other => UpgradeError::Malformed(other.to_string()),
    };
    HandshakeError::Upgrade(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o15_requests_are_checked() {
        let good = [
            ("host", "example.org"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "chat, anabranch.v1"),
        ];
        let check = |name: &str, value: Option<&'static str>| {
            let mut headers: Vec<_> = good.into_iter().filter(|(own, _)| *own != name).collect();
            headers.extend(value.map(|value| (name, value)));
            let headers = headers
                .iter()
                .map(|(name, value)| (*name, value.as_bytes()));
            let request = RequestHead::new("GET", "/", headers);
            UpgradeRequest::check(&request, &ServerConfig::new(Authentication::Tls))
        };
        let answer = check("", None).unwrap();
        // The example of RFC 6455 section 1.3.
        let accept = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(answer.response_headers().contains(&accept));
        let protocol = ("sec-websocket-protocol", "anabranch.v1");
        assert!(answer.response_headers().contains(&protocol));
        let mismatch = |offered: &[&str]| UpgradeError::SubprotocolMismatch {
            offered: offered.iter().map(|offer| (*offer).to_owned()).collect(),
            returned: None,
        };
        for (name, value, error) in [
            ("connection", None, UpgradeError::MissingConnection),
            ("connection", Some("close"), UpgradeError::MissingConnection),
            ("upgrade", Some("h2c"), UpgradeError::MissingUpgrade),
            (
                "sec-websocket-version",
                Some("8"),
                UpgradeError::WrongVersion,
            ),
            ("sec-websocket-key", None, UpgradeError::InvalidKey),
            (
                "sec-websocket-key",
                Some("c2hvcnQ="),
                UpgradeError::InvalidKey,
            ),
            ("sec-websocket-protocol", None, mismatch(&[])),
            (
                "origin",
                Some("https://example.org"),
                UpgradeError::ForeignOrigin {
                    origin: "https://example.org".to_owned(),
                },
            ),
            (
                "sec-websocket-protocol",
                Some("anabranch.noise.v1, x"),
                mismatch(&["anabranch.noise.v1", "x"]),
            ),
        ] {
            assert_eq!(check(name, value), Err(error), "{name}");
        }
    }

    #[test]
    fn requests_of_two_users_differ() {
        let headers = [
            ("host", "example.org"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "anabranch.v1"),
        ];
        let headers = || headers.map(|(name, value)| (name, value.as_bytes()));
        let mut config = ServerConfig::new(Authentication::Tls);
        let check = |config: &ServerConfig, path| {
            let request = RequestHead::new("GET", path, headers());
            UpgradeRequest::check(&request, config).unwrap()
        };
        assert_eq!(check(&config, "/alice"), check(&config, "/alice"));
        let without = check(&config, "/alice");
        config.requests = crate::websocket::RequestPolicy::default()
            .with_hook(|request| Ok(request.path().to_owned()));
        let (alice, bob) = (check(&config, "/alice"), check(&config, "/bob"));
        assert_eq!(alice, alice.clone());
        assert_ne!(alice, bob);
        assert_ne!(alice, without);
        assert_ne!(without, alice);
    }

    #[test]
    fn o2_the_limits_reach_the_engine() {
        let config = WebSocketConfig {
            max_message: 77_777,
            ..WebSocketConfig::default()
        };
        let engine = engine_config(&config);
        assert_eq!(engine.max_message_size, Some(77_777));
        assert_eq!(engine.max_frame_size, Some(77_777));
    }
}
