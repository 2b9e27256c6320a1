//! `X-Forwarded-For` and `Forwarded` (RFC 7239), read from their ends.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::preamble::Malformed;
use super::{ProxyHeader, TrustedProxies, canonical, decimal};

/// The address of the client: the last one that is not a trusted proxy. `hop` is the proxy that
/// sent the request, `lines` are the lines of the header in their order.
pub(crate) fn client<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
    proxies: &TrustedProxies,
    hop: SocketAddr,
) -> Result<SocketAddr, Malformed> {
    let mut hops = Vec::new();
    for line in lines {
        let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
        match proxies.header {
            ProxyHeader::XForwardedFor => hops.extend(
                line.split(',')
                    .map(str::trim)
                    .filter(|hop| !hop.is_empty())
                    .map(Hop::Plain),
            ),
            ProxyHeader::Forwarded => forwarded(line, &mut hops)?,
            ProxyHeader::ProxyProtocol => return Ok(hop),
        }
    }
    let mut client = hop;
    for next in hops.into_iter().rev() {
        let Some(address) = next.address()? else {
            break;
        };
        client = address;
        if !proxies.contains(client.ip()) {
            break;
        }
    }
    Ok(client)
}

/// One hop of the path.
enum Hop<'a> {
    /// An element of `X-Forwarded-For`.
    Plain(&'a str),
    /// A node of RFC 7239, unquoted.
    Node(String),
    /// An element without `for`.
    Missing,
}

impl Hop<'_> {
    /// The address; `None` if it is unknown or obfuscated.
    fn address(&self) -> Result<Option<SocketAddr>, Malformed> {
        let node = match self {
            Self::Plain(text) => {
                // IPv6 also without brackets, if there is no port.
                if let Ok(ip) = text.parse::<Ipv6Addr>() {
                    return Ok(Some(canonical(SocketAddr::new(ip.into(), 0))));
                }
                text
            }
            Self::Node(text) if text.starts_with('_') || name_of(text) == "unknown" => {
                return Ok(None);
            }
            Self::Node(text) => text.as_str(),
            Self::Missing => return Ok(None),
        };
        let (ip, port): (IpAddr, _) = match node.strip_prefix('[') {
            Some(rest) => {
                let (ip, port) = rest.split_once(']').ok_or(Malformed)?;
                let ip: Ipv6Addr = ip.parse().map_err(|_| Malformed)?;
                (ip.into(), port)
            }
            None => {
                let end = node.find(':').unwrap_or(node.len());
                let (ip, port) = node.split_at(end);
                let ip: std::net::Ipv4Addr = ip.parse().map_err(|_| Malformed)?;
                (ip.into(), port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => 0,
            // An obfuscated port.
            Some(port) if port.starts_with('_') && matches!(self, Self::Node(_)) => 0,
            Some(port) => decimal(port).ok_or(Malformed)?,
            None => return Err(Malformed),
        };
        Ok(Some(canonical(SocketAddr::new(ip, port))))
    }
}

/// The node without its port, in lower case.
fn name_of(node: &str) -> String {
    node.split(':')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// Parses the elements of a line of `Forwarded`, strictly: an unclosed quote from a client must not
/// swallow what the proxy appends.
fn forwarded<'a>(line: &str, hops: &mut Vec<Hop<'a>>) -> Result<(), Malformed> {
    let mut rest = line;
    loop {
        let mut client = None;
        let mut has_pairs = false;
        loop {
            rest = rest.trim_start_matches([' ', '\t']);
            if rest.is_empty() || rest.starts_with([',', ';']) {
                // An empty element of a list, or an empty pair.
            } else {
                let (name, value, after) = pair(rest)?;
                rest = after.trim_start_matches([' ', '\t']);
                has_pairs = true;
                if name.eq_ignore_ascii_case("for") && client.replace(value).is_some() {
                    return Err(Malformed);
                }
            }
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        if has_pairs {
            hops.push(client.map_or(Hop::Missing, Hop::Node));
        }
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Ok(()),
            None => return Err(Malformed),
        }
    }
}

/// Parses a pair: its name, its unquoted value, and the rest.
fn pair(text: &str) -> Result<(&str, String, &str), Malformed> {
    let (name, rest) = token(text)?;
    let rest = rest.strip_prefix('=').ok_or(Malformed)?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = token(rest)?;
        return Ok((name, value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next().ok_or(Malformed)? {
            '"' => return Ok((name, value, chars.as_str())),
            '\\' => value.push(chars.next().ok_or(Malformed)?),
            c if c.is_control() && c != '\t' => return Err(Malformed),
            c => value.push(c),
        }
    }
}

/// Parses a token (RFC 9110 section 5.6.2), with the characters of addresses and ports, which some
/// senders do not quote.
fn token(text: &str) -> Result<(&str, &str), Malformed> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:[]".contains(c);
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    if end == 0 {
        return Err(Malformed);
    }
    Ok(text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(header: ProxyHeader, lines: &[&str]) -> Result<String, Malformed> {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
        let proxies = TrustedProxies::new(networks, header);
        let hop = "10.0.0.1:1000".parse().unwrap();
        let lines = lines.iter().map(|line| line.as_bytes());
        client(lines, &proxies, hop).map(|client| client.to_string())
    }

    #[test]
    fn x_forwarded_for_is_believed_from_its_end() {
        let find = |lines: &[&str]| find(ProxyHeader::XForwardedFor, lines);
        for (lines, client) in [
            (&[][..], "10.0.0.1:1000"),
            (&[""], "10.0.0.1:1000"),
            (&["192.0.2.1"], "192.0.2.1:0"),
            // A forged element of the client precedes the real one.
            (&["198.51.100.9, 192.0.2.1"], "192.0.2.1:0"),
            (&["198.51.100.9", "192.0.2.1, 10.1.1.1"], "192.0.2.1:0"),
            (&["nonsense, 192.0.2.1:80"], "192.0.2.1:80"),
            (&["2001:db8::1"], "[2001:db8::1]:0"),
            (&["[2001:db8::1]:9, fd00::7"], "[2001:db8::1]:9"),
            (&["::ffff:192.0.2.1"], "192.0.2.1:0"),
            (&["10.3.3.3"], "10.3.3.3:0"),
        ] {
            assert_eq!(find(lines), Ok(client.to_owned()), "{lines:?}");
        }
        for line in [
            "192.0.2.1, unknown",
            "192.0.2.1:x",
            "192.0.2.1:65536",
            "192.0.2.256",
            "[2001:db8::1",
            "2001:db8::1]",
            "192.0.2.1 10.0.0.1",
            "fe80::1%eth0",
        ] {
            assert_eq!(find(&[line]), Err(Malformed), "{line:?}");
        }
    }

    #[test]
    fn forwarded_is_read_strictly() {
        let find = |lines: &[&str]| find(ProxyHeader::Forwarded, lines);
        for (lines, client) in [
            (&["for=192.0.2.1"][..], "192.0.2.1:0"),
            (
                &["for=198.51.100.9, FOR=\"192.0.2.1:80\";proto=https"],
                "192.0.2.1:80",
            ),
            (&["for=192.0.2.1", "by=_x;for=10.2.2.2"], "192.0.2.1:0"),
            (&["for=\"[2001:db8::1]:_port\""], "[2001:db8::1]:0"),
            (&["for=\"[2001:db8::1]\""], "[2001:db8::1]:0"),
            (&["for=192.0.2.1, for=unknown"], "10.0.0.1:1000"),
            (&["for=192.0.2.1, for=_hidden"], "10.0.0.1:1000"),
            (&["for=192.0.2.1, proto=http"], "10.0.0.1:1000"),
            (&["for=192.0.2.1,,"], "192.0.2.1:0"),
        ] {
            assert_eq!(find(lines), Ok(client.to_owned()), "{lines:?}");
        }
        for line in [
            "192.0.2.1",
            "for=",
            "for=\"192.0.2.1",
            "for=192.0.2.1;for=192.0.2.2",
            "for=nobody",
            // An unclosed quote of the client, and what a proxy may append.
            "for=203.0.113.5;by=\", for=192.0.2.1",
            "for=203.0.113.5;by=\", for=\"[2001:db8::1]:1\"",
            "for=203.0.113.5;by=\", for=192.0.2.1;host=\"\"",
        ] {
            assert_eq!(find(&[line]), Err(Malformed), "{line:?}");
        }
    }
}
