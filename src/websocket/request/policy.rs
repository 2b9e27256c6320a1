//! Which requests may connect, by origin, host and path.

use std::any::{Any, TypeId};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::RequestHead;
use crate::connection::Attachment;
use crate::websocket::config::Authentication;
use crate::websocket::error::UpgradeError;

/// Which web pages may connect.
///
/// A browser lets any page connect to any server, also on this machine and in the local network,
/// sends the cookies of that server, and reports the origin of the page in `Origin`. Programs send
/// no `Origin`, and are never refused for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Origins {
    /// With Noise [`Origins::Any`], without [`Origins::Same`].
    ///
    /// With Noise a page is a peer like any other, which proves an identity and has only its
    /// rights; libp2p nodes in browsers dial listeners from pages of any origin. Without Noise the
    /// network location of the browser, or its cookies, would authorize any page.
    #[default]
    ByAuthentication,
    /// All pages. A server that authorizes clients by cookies, or by their network location, is
    /// then open to every page.
    Any,
    /// Pages of the same host as in `Host`.
    ///
    /// With DNS rebinding, a page of a name that its owner resolves to this machine sends that name
    /// as `Host` too. So at an address that is not public (loopback, private, link-local), and at
    /// an unknown one, only IP addresses, `localhost` and the names in [`RequestPolicy::hosts`]
    /// count as own hosts.
    Same,
    /// Pages of these origins, such as `https://example.org`; the default port of the scheme may be
    /// omitted. `null` stands for all pages with an opaque origin: files and sandboxed frames, of
    /// anybody.
    Only(Vec<String>),
}

/// Checks a request that has passed all other checks. Returns what is attached to its connection.
type Hook = dyn Fn(&RequestHead<'_>) -> Result<Option<Attachment>, UpgradeError> + Send + Sync;

/// Which requests are upgraded.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct RequestPolicy {
    /// Which web pages may connect; others are answered with status 403. Default:
    /// [`Origins::ByAuthentication`].
    pub origins: Origins,
    /// The names and addresses of this server, each with or without a port; without one any port
    /// matches. A request with another `Host` is answered with status 421. Default: `None`, any.
    /// Answers DNS rebinding.
    pub hosts: Option<Vec<String>>,
    /// The paths that are upgraded, as sent in requests, without the query; others are answered
    /// with status 404. Default: `None`, any.
    pub paths: Option<Vec<String>>,
    hook: Option<Arc<Hook>>,
}

impl fmt::Debug for RequestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestPolicy")
            .field("origins", &self.origins)
            .field("hosts", &self.hosts)
            .field("paths", &self.paths)
            .field("has_hook", &self.hook.is_some())
            .finish()
    }
}

impl RequestPolicy {
    /// Calls `hook` for every request that has passed all other checks, with its path, query,
    /// headers, cookies and the address of the client. Its error, from [`UpgradeError::refused`],
    /// is the response. It runs in the task of the handshake, and must not block.
    ///
    /// The value that it returns is attached to the connection, which keeps it as long as it lives
    /// ([`Connection::attachment`](crate::Connection::attachment)): a user, a path, or `()`.
    ///
    /// ```
    /// use anabranch::Connection;
    /// use anabranch::websocket::{RequestPolicy, UpgradeError};
    ///
    /// struct User(String);
    ///
    /// let policy = RequestPolicy::default().with_hook(|request| match request.cookie("session") {
    ///     Some("secret") => Ok(User("alice".to_owned())),
    ///     _ => Err(UpgradeError::refused(401, "Log in first.")),
    /// });
    ///
    /// fn serve(connection: &Connection) {
    ///     let user = connection.attachment::<User>().map(|user| user.0.as_str());
    ///     println!("{}", user.unwrap_or("not over this WebSocket listener"));
    /// }
    /// ```
    #[must_use]
    pub fn with_hook<T, F>(mut self, hook: F) -> Self
    where
        T: Any + Send + Sync,
        F: Fn(&RequestHead<'_>) -> Result<T, UpgradeError> + Send + Sync + 'static,
    {
        self.hook = Some(Arc::new(move |head: &RequestHead<'_>| {
            let value = hook(head)?;
            // Nothing to keep.
            let is_unit = TypeId::of::<T>() == TypeId::of::<()>();
            Ok((!is_unit).then(|| Arc::new(value) as Attachment))
        }));
        self
    }

    pub(crate) fn ask_hook(
        &self,
        head: &RequestHead<'_>,
    ) -> Result<Option<Attachment>, UpgradeError> {
        self.hook.as_ref().map_or(Ok(None), |hook| hook(head))
    }

    pub(crate) fn check_path(&self, head: &RequestHead<'_>) -> Result<(), UpgradeError> {
        match &self.paths {
            Some(paths) if !paths.iter().any(|path| path == head.path()) => {
                let path = head.path().to_owned();
                Err(UpgradeError::UnknownPath { path })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_host(&self, head: &RequestHead<'_>) -> Result<(), UpgradeError> {
        if self.hosts.is_none() {
            return Ok(());
        }
        let host = head.single("host")?.unwrap_or_default();
        match Authority::parse(host) {
            Some(authority) if self.names(&authority) => Ok(()),
            _ => Err(UpgradeError::ForeignHost {
                host: host.to_owned(),
            }),
        }
    }

    pub(crate) fn check_origin(
        &self,
        head: &RequestHead<'_>,
        authentication: &Authentication,
    ) -> Result<(), UpgradeError> {
        let Some(origin) = head.single("origin")? else {
            return Ok(());
        };
        let may_connect = match (&self.origins, authentication) {
            (Origins::Any, _) | (Origins::ByAuthentication, Authentication::Noise { .. }) => true,
            (Origins::Only(origins), _) => origins.iter().any(|own| is_same(own, origin)),
            (Origins::Same, _)
            | (Origins::ByAuthentication, Authentication::Tls | Authentication::DangerNone) => {
                self.is_own(origin, head)?
            }
        };
        if may_connect {
            return Ok(());
        }
        Err(UpgradeError::ForeignOrigin {
            origin: origin.to_owned(),
        })
    }

    /// Whether the page's origin is the host that it connects to.
    fn is_own(&self, origin: &str, head: &RequestHead<'_>) -> Result<bool, UpgradeError> {
        let host = head.single("host")?.unwrap_or_default();
        let (Some((scheme, page)), Some(host)) = (split_origin(origin), Authority::parse(host))
        else {
            return Ok(false);
        };
        if head.is_over_tls() && !scheme.eq_ignore_ascii_case("https") {
            return Ok(false);
        }
        // A proxy that terminates TLS omits the port of `wss`.
        let page_port = page.port.or_else(|| default_port(scheme));
        let host_port = host.port.or_else(|| default_port(scheme));
        if !page.host.eq_ignore_ascii_case(host.host) || page_port != host_port {
            return Ok(false);
        }
        let local = head.local_address();
        let is_public = local.is_some_and(|local| is_public(local.ip()));
        Ok(self.names(&host) || is_public || host.is_no_name())
    }

    /// Whether `hosts` contains this host.
    fn names(&self, host: &Authority<'_>) -> bool {
        self.hosts.iter().flatten().any(|own| {
            Authority::parse(own).is_some_and(|own| {
                own.host.eq_ignore_ascii_case(host.host)
                    && (own.port.is_none() || own.port == host.port)
            })
        })
    }
}

/// A host and perhaps a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Authority<'a> {
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
}

impl<'a> Authority<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let end = match text.strip_prefix('[') {
            Some(_) => text.find(']')? + 1,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, port) = (text.get(..end)?, text.get(end..)?);
        let is_host = match host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
            Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
            None => {
                let of_name = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
                !host.is_empty() && host.chars().all(of_name)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            // A colon without a port means the default port (RFC 3986 section 6.2.3).
            Some("") => None,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(port.parse().ok()?)
            }
            _ => return None,
        };
        is_host.then_some(Self { host, port })
    }

    /// Whether DNS can not redirect it: an address, or `localhost` (RFC 6761 section 6.3).
    fn is_no_name(&self) -> bool {
        let host = self.host.trim_end_matches('.');
        let is_local = host.eq_ignore_ascii_case("localhost")
            || host
                .len()
                .checked_sub(".localhost".len())
                .and_then(|at| host.get(at..))
                .is_some_and(|end| end.eq_ignore_ascii_case(".localhost"));
        is_local || host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok()
    }
}

/// The scheme and the authority of an origin (RFC 6454 section 6.2).
fn split_origin(origin: &str) -> Option<(&str, Authority<'_>)> {
    let (scheme, authority) = origin.split_once("://")?;
    Some((scheme, Authority::parse(authority)?))
}

fn default_port(scheme: &str) -> Option<u16> {
    if scheme.eq_ignore_ascii_case("https") {
        return Some(443);
    }
    scheme.eq_ignore_ascii_case("http").then_some(80)
}

fn is_same(own: &str, origin: &str) -> bool {
    if own.eq_ignore_ascii_case(origin) {
        return true;
    }
    let (Some((own_scheme, own)), Some((scheme, page))) = (split_origin(own), split_origin(origin))
    else {
        return false;
    };
    let own_port = own.port.or_else(|| default_port(own_scheme));
    own_scheme.eq_ignore_ascii_case(scheme)
        && own.host.eq_ignore_ascii_case(page.host)
        && own_port == page.port.or_else(|| default_port(scheme))
}

/// Whether the address is public, so that a page gains no access through the browser.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            // 100.64.0.0/10 is shared by the customers of a carrier (RFC 6598).
            let is_shared = matches!(ip.octets(), [100, 64..=127, ..]);
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || is_shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn check(
        policy: &RequestPolicy,
        authentication: &Authentication,
        local: Option<&str>,
        host: &str,
        origin: &str,
    ) -> u16 {
        let headers = [("Host", host.as_bytes()), ("Origin", origin.as_bytes())];
        let mut head = RequestHead::new("GET", "/", headers);
        if let Some(local) = local {
            head = head.with_local_address(local.parse().unwrap());
        }
        policy
            .check_host(&head)
            .and_then(|()| policy.check_origin(&head, authentication))
            .map_or_else(|error| error.status(), |()| 101)
    }

    #[test]
    fn a_page_of_another_origin_is_refused_where_no_noise_protects() {
        let policy = RequestPolicy::default();
        let public = Some("203.0.113.1:80");
        let loopback = Some("127.0.0.1:80");
        let private = Some("[fd00::1]:80");
        for (local, host, origin, status) in [
            (public, "example.org", "http://example.org", 101),
            (public, "EXAMPLE.org:80", "http://example.org", 101),
            (public, "example.org", "https://example.org", 101),
            (public, "example.org:443", "https://example.org", 101),
            (public, "example.org:8080", "http://example.org:8080", 101),
            (public, "example.org:8080", "http://example.org", 403),
            (public, "example.org", "http://evil.example", 403),
            (
                public,
                "example.org",
                "http://example.org.evil.example",
                403,
            ),
            (
                public,
                "example.org",
                "http://example.org@evil.example",
                403,
            ),
            (public, "example.org", "null", 403),
            (public, "example.org", "", 403),
            (public, "", "http://", 403),
            (public, "example.org", "http://example.org/", 403),
            (
                public,
                "example.org",
                "http://example.org http://evil.example",
                403,
            ),
            // A name that its owner resolves to this machine.
            (loopback, "evil.example", "http://evil.example", 403),
            (private, "evil.example", "http://evil.example", 403),
            (None, "evil.example", "http://evil.example", 403),
            (
                loopback,
                "127.0.0.1.evil.example",
                "http://127.0.0.1.evil.example",
                403,
            ),
            (loopback, "evillocalhost", "http://evillocalhost", 403),
            (loopback, "localhost:3000", "http://localhost:3000", 101),
            (
                loopback,
                "app.localhost:3000",
                "http://app.localhost:3000",
                101,
            ),
            (loopback, "127.0.0.1:3000", "http://127.0.0.1:3000", 101),
            // Another server of this machine.
            (loopback, "localhost:3000", "http://localhost:3001", 403),
            (private, "[fd00::1]", "http://[fd00::1]", 101),
        ] {
            for authentication in [Authentication::Tls, Authentication::DangerNone] {
                let got = check(&policy, &authentication, local, host, origin);
                assert_eq!(got, status, "{local:?} {host} {origin}");
            }
            let noise = Authentication::noise(Identity::generate());
            assert_eq!(check(&policy, &noise, local, host, origin), 101);
        }
    }

    #[test]
    fn lists_of_origins_and_hosts_are_kept_to() {
        let noise = Authentication::noise(Identity::generate());
        let check =
            |policy: &_, host: &str, origin: &str| check(policy, &noise, None, host, origin);
        let mut policy = RequestPolicy {
            origins: Origins::Only(vec!["https://a.example".to_owned(), "null".to_owned()]),
            ..RequestPolicy::default()
        };
        assert_eq!(check(&policy, "x", "https://a.example"), 101);
        assert_eq!(check(&policy, "x", "https://A.example:443"), 101);
        assert_eq!(check(&policy, "x", "null"), 101);
        assert_eq!(check(&policy, "x", "http://a.example"), 403);
        assert_eq!(check(&policy, "x", "https://a.example:444"), 403);
        policy.origins = Origins::Same;
        assert_eq!(check(&policy, "b.example", "https://b.example"), 403);
        policy.hosts = Some(vec!["b.example".to_owned(), "c.example:8080".to_owned()]);
        assert_eq!(check(&policy, "b.example", "https://b.example"), 101);
        assert_eq!(check(&policy, "b.example:1", "http://b.example:1"), 101);
        assert_eq!(
            check(&policy, "c.example:8080", "http://c.example:8080"),
            101
        );
        assert_eq!(check(&policy, "c.example", "http://c.example"), 421);
        assert_eq!(check(&policy, "d.example", "http://d.example"), 421);
        assert_eq!(check(&policy, "", "http://b.example"), 421);
        policy.origins = Origins::Any;
        assert_eq!(check(&policy, "b.example", "http://d.example"), 101);
    }
}
