//! The head of an upgrade request, and its validation.

use std::fmt;
use std::net::SocketAddr;

use super::error::UpgradeError;
use reading::HeadBuffer;

pub(crate) mod answer;
mod http;
pub(crate) mod policy;
pub(crate) mod reading;

/// Maximum headers of a request. Browsers send about fifteen, proxies add as many.
const MAX_HEADERS: usize = 100;

/// The head of an HTTP request.
///
/// [`WebSocketListener`](super::WebSocketListener) parses it itself. A program with an HTTP server
/// of its own builds it for [`UpgradeRequest::check`](super::UpgradeRequest::check).
#[derive(Clone)]
pub struct RequestHead<'a> {
    method: &'a str,
    target: &'a str,
    /// HTTP/1.0, which has no upgrade (RFC 9110 section 7.8).
    is_http_1_0: bool,
    headers: Vec<(&'a str, &'a [u8])>,
    remote: Option<SocketAddr>,
    local: Option<SocketAddr>,
    is_over_tls: bool,
}

impl fmt::Debug for RequestHead<'_> {
    /// Without header values, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.headers.iter().map(|(name, _)| name);
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("headers", &names.collect::<Vec<_>>())
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl<'a> RequestHead<'a> {
    /// An HTTP/1.1 request with the method and target of its request line, and all headers in their
    /// order, repeated ones included.
    pub fn new(
        method: &'a str,
        target: &'a str,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        Self {
            method,
            target,
            is_http_1_0: false,
            headers: headers.into_iter().collect(),
            remote: None,
            local: None,
            is_over_tls: false,
        }
    }

    /// Sets the address of the client.
    #[must_use]
    pub fn with_remote_address(mut self, remote: SocketAddr) -> Self {
        self.remote = Some(remote);
        self
    }

    /// Sets the local address of the connection. An unknown one counts as not reachable from the
    /// public network; see [`Origins::Same`](super::Origins::Same).
    #[must_use]
    pub fn with_local_address(mut self, local: SocketAddr) -> Self {
        self.local = Some(local);
        self
    }

    /// Declares that the request came over TLS, so that pages without TLS have another origin.
    /// Otherwise this is unknown, since a proxy may have terminated TLS.
    #[must_use]
    pub fn over_tls(mut self) -> Self {
        self.is_over_tls = true;
        self
    }

    /// Parses a whole head, including the empty line at its end. Empty lines before it are skipped
    /// (RFC 9112 section 2.2).
    ///
    /// # Errors
    /// [`UpgradeError::Malformed`], also for NUL, a bare CR or a bare LF, which allow request
    /// smuggling past a proxy, and for bytes after the head; [`UpgradeError::HeadTooLong`] above
    /// 8 KiB or for too many headers; [`UpgradeError::UnsupportedHttp`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, UpgradeError> {
        Self::parse_checked(HeadBuffer::head_of(bytes)?)
    }

    /// Parses a head that [`HeadBuffer`] has checked.
    pub(crate) fn parse_checked(bytes: &'a [u8]) -> Result<Self, UpgradeError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let malformed = |text: &str| UpgradeError::Malformed(text.to_owned());
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
            Ok(_) => return Err(malformed("the head does not end where it seems to")),
            Err(httparse::Error::TooManyHeaders) => return Err(UpgradeError::HeadTooLong),
            Err(httparse::Error::Version) if has_other_version(bytes) => {
                return Err(UpgradeError::UnsupportedHttp);
            }
            Err(error) => return Err(UpgradeError::Malformed(error.to_string())),
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(malformed("no request line"));
        };
        let headers = request.headers.iter();
        let mut head = Self::new(
            method,
            target,
            headers.map(|header| (header.name, header.value)),
        );
        head.is_http_1_0 = minor == 0;
        Ok(head)
    }

    /// The method, as sent.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The path, percent-encoded as sent, without the query.
    pub fn path(&self) -> &'a str {
        let target = self.path_and_query();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The part of the target after the first `?`, if there is one.
    pub fn query(&self) -> Option<&'a str> {
        self.path_and_query()
            .split_once('?')
            .map(|(_, query)| query)
    }

    /// The values of a header, in their order. The name is compared case-insensitively.
    pub fn headers(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// The value of a header that occurs once and is UTF-8; otherwise `None`.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut values = self.headers(name);
        let only = values.next().filter(|_| values.next().is_none())?;
        std::str::from_utf8(only)
            .ok()
            .map(|text| text.trim_matches([' ', '\t']))
    }

    /// The value of a cookie. Browsers send the cookies of this server's host with every request,
    /// whichever page makes it.
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        self.headers("cookie")
            .filter_map(|line| std::str::from_utf8(line).ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(own, value)| (own == name).then_some(value))
    }

    /// The address of the client, if known: behind a trusted proxy the one that it reports.
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.remote
    }

    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.local
    }

    pub(super) fn is_over_tls(&self) -> bool {
        self.is_over_tls
    }

    pub(super) fn is_http_1_0(&self) -> bool {
        self.is_http_1_0
    }

    /// The value of a header that may occur once.
    pub(super) fn single(&self, name: &'static str) -> Result<Option<&'a str>, UpgradeError> {
        let mut values = self.headers(name);
        let Some(first) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(UpgradeError::RepeatedHeader(name));
        }
        match std::str::from_utf8(first) {
            Ok(text) => Ok(Some(text.trim_matches([' ', '\t']))),
            Err(_) => Err(UpgradeError::Malformed(format!("{name} is no text"))),
        }
    }

    /// The members of a list header, which may span several lines (RFC 9110 section 5.3).
    pub(super) fn members(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers(name)
            .filter_map(|line| std::str::from_utf8(line).ok())
            .flat_map(|line| line.split(','))
            .map(|member| member.trim_matches([' ', '\t']))
            .filter(|member| !member.is_empty())
    }

    /// The authority of a target in absolute form, which a server has to accept (RFC 9112 section
    /// 3.2.2).
    fn authority(&self) -> Option<&'a str> {
        let (scheme, rest) = self.target.split_once("://")?;
        let schemes = ["http", "https", "ws", "wss"];
        let is_known = schemes.iter().any(|own| own.eq_ignore_ascii_case(scheme));
        is_known.then(|| rest.split(['/', '?']).next().unwrap_or_default())
    }

    fn path_and_query(&self) -> &'a str {
        let Some(authority) = self.authority() else {
            return self.target;
        };
        let begin = self.target.find("://").map_or(0, |at| at + 3) + authority.len();
        match self.target.get(begin..) {
            Some(rest) if rest.starts_with('/') => rest,
            // An empty path is the root, also before a query.
            _ => "/",
        }
    }

    /// Checks the rules of HTTP, independent of the upgrade.
    pub(super) fn check(&self) -> Result<(), UpgradeError> {
        let malformed = |text: &str| Err(UpgradeError::Malformed(text.to_owned()));
        let host = self.single("host")?;
        match (host, self.authority()) {
            (None, _) if !self.is_http_1_0 => return malformed("no Host"),
            (Some(host), _) if !host.is_empty() && policy::Authority::parse(host).is_none() => {
                return malformed("invalid Host");
            }
            (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
                return malformed("Host differs from the target");
            }
            _ => {}
        }
        if !self.path_and_query().starts_with('/') {
            return malformed("target without a path");
        }
        // A body would be parsed as frames.
        if self.headers("transfer-encoding").next().is_some() {
            return malformed("a body");
        }
        let is_zero = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte == b'0');
        match self.single("content-length")? {
            Some(length) if !is_zero(length) => malformed("a body"),
            _ => Ok(()),
        }
    }
}

/// Whether the request line ends with an HTTP version. httparse supports only 1.0 and 1.1.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let version = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next();
    version.is_some_and(|version| {
        matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequestHead<'_>, UpgradeError> {
        let head = RequestHead::parse(text.as_bytes())?;
        head.check()?;
        Ok(head)
    }

    #[test]
    fn what_a_request_says_is_found() {
        let head = parse(
            "GET /a/b?c=d?e HTTP/1.1\r\nhost: example.org\r\nCookie: a=1; session=x=y\r\n\
            X: 1\r\nx:  2 \r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.method(), head.path()), ("GET", "/a/b"));
        assert_eq!(head.query(), Some("c=d?e"));
        assert_eq!(head.header("Host"), Some("example.org"));
        assert_eq!(head.header("x"), None, "it is repeated");
        assert_eq!(head.headers("X").count(), 2);
        assert_eq!(head.members("x").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.cookie("session"), Some("x=y"));
        assert_eq!(head.cookie("sess"), None);
        assert!(!format!("{head:?}").contains("session"));
        let head = parse("GET ws://example.org:1/p?q HTTP/1.1\r\nHost: example.org:1\r\n\r\n");
        let head = head.unwrap();
        assert_eq!((head.path(), head.query()), ("/p", Some("q")));
        let head = parse("GET HTTP://example.org HTTP/1.1\r\nHost: EXAMPLE.org\r\n\r\n");
        assert_eq!(head.unwrap().path(), "/");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_read() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \u{1f600}\r\n\r\n",
            "\r\n\r\n",
        ] {
            let error = parse(head).expect_err(head);
            assert_eq!(error.status(), 400, "{head:?}: {error}");
        }
        let head = "PRI * HTTP/2.0\r\n\r\n";
        assert_eq!(parse(head).unwrap_err(), UpgradeError::UnsupportedHttp);
        let mut head = "GET / HTTP/1.1\r\nHost: a\r\n".to_owned();
        for index in 0..MAX_HEADERS {
            head.push_str(&format!("a{index}: b\r\n"));
        }
        head.push_str("\r\n");
        assert_eq!(parse(&head).unwrap_err(), UpgradeError::HeadTooLong);
        parse("GET / HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert!(parse("GET / HTTP/1.0\r\n\r\n").unwrap().is_http_1_0());
    }
}
