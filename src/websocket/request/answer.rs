//! The HTTP responses to requests that are not upgraded, for people and load balancers.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::websocket::error::UpgradeError;

/// Maximum bytes discarded while a client reads the response.
const MAX_DRAINED: u64 = 4 * 1024 * 1024;

/// Size of the buffer for them.
const DRAINED_AT_ONCE: usize = 2048;

/// An HTTP response that closes the connection; see [`UpgradeError::answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    pub(crate) fn new(status: u16, text: impl Into<String>) -> Self {
        let mut body = text.into();
        body.push('\n');
        Self { status, body }
    }

    /// The status code, 400 to 599.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The headers of the status: those of a WebSocket server with 426, `Allow` with 405,
    /// `Retry-After` with 503. The server adds `Content-Length` and `Connection: close`.
    pub fn headers(&self) -> &'static [(&'static str, &'static str)] {
        match self.status {
            405 => &[("allow", "GET")],
            426 => &[("sec-websocket-version", "13"), ("upgrade", "websocket")],
            503 => &[("retry-after", "1")],
            _ => &[],
        }
    }

    /// The header `Connection`. Upgrade is an option of the connection (RFC 9110 section 7.8).
    pub(super) fn connection(&self) -> &'static str {
        match self.status {
            426 => "close, upgrade",
            _ => "close",
        }
    }

    /// One line of plain text. It contains nothing that the client sent.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Encodes the response as HTTP/1.1, with `Content-Length` and `Connection: close`; without the
    /// body for HEAD.
    pub fn encode(&self, with_body: bool) -> Vec<u8> {
        let (status, reason) = (self.status, reason(self.status));
        let connection = self.connection();
        let mut text = format!("HTTP/1.1 {status} {reason}\r\nconnection: {connection}\r\n");
        for (name, value) in self.headers() {
            text.extend([name, ": ", value, "\r\n"]);
        }
        let length = self.body.len();
        text.push_str(&format!(
            "content-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\r\n"
        ));
        if with_body {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }

    /// Sends the response, shuts down the write half, and waits until the client has closed too or
    /// `limit` has expired. An immediate close with unread bytes would reset the connection and
    /// lose the response (RFC 1122 section 4.2.2.13).
    pub(crate) async fn send<S>(&self, stream: &mut S, with_body: bool, limit: Duration)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let bytes = self.encode(with_body);
        let sending = async {
            stream.write_all(&bytes).await?;
            drain(stream).await
        };
        // An error means that the client is gone.
        let _ = timeout(limit, sending).await;
    }
}

/// Shuts down the write half, and waits until the client has closed too or `limit` has expired, so
/// that what was sent last is not lost.
pub(crate) async fn linger<S>(stream: &mut S, limit: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // An error means that the client is gone.
    let _ = timeout(limit, drain(stream)).await;
}

async fn drain<S>(stream: &mut S) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.shutdown().await?;
    let mut scrap = vec![0; DRAINED_AT_ONCE];
    let mut drained = 0_u64;
    loop {
        match stream.read(&mut scrap).await? {
            0 => return Ok(()),
            len => drained = drained.saturating_add(len as u64),
        }
        if drained > MAX_DRAINED {
            return Ok(());
        }
    }
}

/// The reason phrase (RFC 9110 section 15).
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Refused",
    }
}

impl UpgradeError {
    /// The status of the response to such a request.
    pub fn status(&self) -> u16 {
        match self {
            Self::ForeignHost { .. } => 421,
            Self::ForeignOrigin { .. } => 403,
            Self::HeadTooLong => 431,
            Self::MissingConnection | Self::MissingUpgrade | Self::WrongVersion => 426,
            Self::Refused { status, .. } => *status,
            Self::UnknownPath { .. } => 404,
            Self::UnsupportedHttp => 505,
            Self::WrongMethod => 405,
            _ => 400,
        }
    }

    /// The response to such a request.
    pub fn answer(&self) -> Answer {
        let text = match self {
            Self::ForeignHost { .. } => "This server does not serve that host.",
            Self::ForeignOrigin { .. } => "Pages of this origin may not connect.",
            Self::HeadTooLong => "The request is too long.",
            Self::InvalidKey => "No valid Sec-WebSocket-Key.",
            Self::MissingConnection | Self::MissingUpgrade => {
                "This is a WebSocket server. There is nothing to see without an upgrade."
            }
            Self::Refused { reason, .. } => reason,
            Self::RepeatedHeader(_) => "A header that may occur once is repeated.",
            Self::SubprotocolMismatch { .. } => "None of the offered subprotocols is supported.",
            Self::UnknownPath { .. } => "There is no WebSocket at this path.",
            Self::UnsupportedHttp => "This server supports HTTP/1.1.",
            Self::WrongMethod => "Only GET is upgraded.",
            Self::WrongVersion => "This server supports version 13 of the WebSocket protocol.",
            _ => "The request is malformed.",
        };
        Answer::new(self.status(), text)
    }
}
