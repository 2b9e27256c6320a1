//! The PROXY protocol, versions 1 and 2, which a proxy sends before everything else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{canonical, decimal};

/// The beginning of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The beginning of version 1.
const WORD: &[u8] = b"PROXY ";

/// Maximum length of a line of version 1, including its end.
const MAX_LINE: usize = 107;

/// Maximum bytes after the header of version 2. The longest addresses have 216; TLVs follow, for
/// example the TLS certificate of the client, which are skipped.
const MAX_REST: usize = 4096;

/// Length of the longest addresses that are parsed: two of IPv6, with two ports.
const ADDRESSES: usize = 36;

/// The header is missing or malformed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads the header, and not a byte more. Returns `None` for connections of the proxy itself.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a malformed header, and those of the stream.
pub(crate) async fn read<S>(stream: &mut S) -> io::Result<Option<SocketAddr>>
where
    S: AsyncRead + Unpin,
{
    let malformed = |Malformed| io::Error::new(io::ErrorKind::InvalidData, "no PROXY header");
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await?;
    if &begin == SIGNATURE {
        let mut header = [0; 4];
        stream.read_exact(&mut header).await?;
        let len = rest_of_v2(header).map_err(malformed)?;
        let mut addresses = [0; ADDRESSES];
        let kept = len.min(ADDRESSES);
        let (kept, _) = addresses.split_at_mut(kept);
        stream.read_exact(kept).await?;
        let mut rest = stream.take((len - kept.len()) as u64);
        let skipped = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
        if skipped != (len - kept.len()) as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return parse_v2(header, kept).map_err(malformed);
    }
    if !begin.starts_with(WORD) {
        return Err(malformed(Malformed));
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\n") {
        if line.len() >= MAX_LINE {
            return Err(malformed(Malformed));
        }
        line.push(stream.read_u8().await?);
    }
    parse_v1(&line).map_err(malformed)
}

/// Parses a line of version 1, including its end.
pub(crate) fn parse_v1(line: &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    let line = line
        .strip_prefix(WORD)
        .and_then(|line| line.strip_suffix(b"\r\n"))
        .ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        // The rest of the line is ignored.
        return Ok(None);
    }
    let mut word = || words.next().ok_or(Malformed);
    let (source, destination) = (word()?, word()?);
    let (port, other_port) = (word()?, word()?);
    if words.next().is_some() {
        return Err(Malformed);
    }
    let port = decimal(port).ok_or(Malformed)?;
    decimal(other_port).ok_or(Malformed)?;
    let ip: IpAddr = match family {
        Some("TCP4") => {
            let _: Ipv4Addr = destination.parse().map_err(|_| Malformed)?;
            source.parse::<Ipv4Addr>().map_err(|_| Malformed)?.into()
        }
        Some("TCP6") => {
            let _: Ipv6Addr = destination.parse().map_err(|_| Malformed)?;
            source.parse::<Ipv6Addr>().map_err(|_| Malformed)?.into()
        }
        _ => return Err(Malformed),
    };
    Ok(Some(canonical(SocketAddr::new(ip, port))))
}

/// Number of bytes after the header of version 2, from its four bytes after the signature.
fn rest_of_v2([_, _, high, low]: [u8; 4]) -> Result<usize, Malformed> {
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_REST {
        return Err(Malformed);
    }
    Ok(len)
}

/// Parses the header of version 2 after its signature, and the addresses in `rest`.
pub(crate) fn parse_v2(header: [u8; 4], rest: &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    let [version_and_command, family, ..] = header;
    match version_and_command {
        // LOCAL: a health check of the proxy.
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(Malformed),
    }
    let port = |bytes: &[u8], at: usize| {
        bytes
            .get(at..at + 2)
            .and_then(|port| port.try_into().ok())
            .map(u16::from_be_bytes)
            .ok_or(Malformed)
    };
    let ip: (IpAddr, u16) = match family {
        // TCP only.
        0x11 => {
            let ip: [u8; 4] = rest.first_chunk().copied().ok_or(Malformed)?;
            (Ipv4Addr::from(ip).into(), port(rest, 8)?)
        }
        0x21 => {
            let ip: [u8; 16] = rest.first_chunk().copied().ok_or(Malformed)?;
            (Ipv6Addr::from(ip).into(), port(rest, 32)?)
        }
        // Unspecified, and Unix sockets: no address.
        0x00 | 0x31 | 0x32 => return Ok(None),
        _ => return Err(Malformed),
    };
    // Addresses and two ports.
    let whole = if ip.0.is_ipv4() { 12 } else { ADDRESSES };
    if rest.len() < whole {
        return Err(Malformed);
    }
    Ok(Some(canonical(SocketAddr::new(ip.0, ip.1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(line: &str) -> Result<Option<SocketAddr>, Malformed> {
        parse_v1(line.as_bytes())
    }

    #[test]
    fn lines_of_version_1_are_read_strictly() {
        let address = |text: &str| Ok(Some(text.parse().unwrap()));
        assert_eq!(
            v1("PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n"),
            address("192.0.2.1:4711")
        );
        assert_eq!(
            v1("PROXY TCP6 2001:db8::1 ::1 65535 0\r\n"),
            address("[2001:db8::1]:65535")
        );
        assert_eq!(
            v1("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"),
            address("192.0.2.1:1")
        );
        assert_eq!(v1("PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(v1("PROXY UNKNOWN a b c d\r\n"), Ok(None));
        for line in [
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 4711\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.2 1 443\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 443\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 1 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.2 1 443\r\n",
        ] {
            assert_eq!(v1(line), Err(Malformed), "{line:?}");
        }
    }

    async fn read_all(bytes: &[u8]) -> Result<(Option<SocketAddr>, usize), io::ErrorKind> {
        let mut rest = bytes;
        let address = read(&mut rest).await.map_err(|error| error.kind())?;
        Ok((address, rest.len()))
    }

    #[tokio::test]
    async fn headers_of_both_versions_are_read_to_their_last_byte() {
        let v2 = |command: u8, family: u8, rest: &[u8]| {
            let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
            let mut all = SIGNATURE.to_vec();
            all.extend_from_slice(&[command, family]);
            all.extend_from_slice(&len);
            all.extend_from_slice(rest);
            all.extend_from_slice(b"GET");
            all
        };
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x67, 1, 187];
        let expected = Some("192.0.2.1:4711".parse().unwrap());
        assert_eq!(read_all(&v2(0x21, 0x11, &v4)).await, Ok((expected, 3)));
        let with_tlvs = [&v4[..], &[7; 1000]].concat();
        assert_eq!(
            read_all(&v2(0x21, 0x11, &with_tlvs)).await,
            Ok((expected, 3))
        );
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[33] = 80;
        let expected = Some("[::1]:80".parse().unwrap());
        assert_eq!(read_all(&v2(0x21, 0x21, &v6)).await, Ok((expected, 3)));
        assert_eq!(read_all(&v2(0x20, 0x00, &[])).await, Ok((None, 3)));
        assert_eq!(read_all(&v2(0x21, 0x00, &[1; 7])).await, Ok((None, 3)));
        assert_eq!(read_all(&v2(0x21, 0x31, &[0; 216])).await, Ok((None, 3)));
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\nGET";
        let expected = Some("192.0.2.1:4711".parse().unwrap());
        assert_eq!(read_all(line).await, Ok((expected, 3)));
        let invalid = Err(io::ErrorKind::InvalidData);
        for bad in [
            v2(0x11, 0x11, &v4),
            v2(0x22, 0x11, &v4),
            v2(0x21, 0x12, &v4),
            v2(0x21, 0x11, &v4[..11]),
            v2(0x21, 0x21, &v6[..35]),
            v2(0x21, 0x11, &[0; MAX_REST + 1]),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; 200]].concat(),
        ] {
            assert_eq!(read_all(&bad).await, invalid);
        }
        let cut = &v2(0x21, 0x11, &with_tlvs)[..500];
        assert_eq!(read_all(cut).await, Err(io::ErrorKind::UnexpectedEof));
    }
}
