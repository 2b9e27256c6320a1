//! Random lines as a request head, a PROXY header or the header of a trusted proxy, split at
//! arbitrary positions.

use anabranch_testkit::fuzzing::{Input, request_text};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::websocket::proxy::{forwarded, preamble};
use crate::websocket::request::reading::{HeadBuffer, MAX_HEAD};
use crate::websocket::{ProxyHeader, TrustedProxies, UpgradeError};

/// Runs inputs of random bytes, each determined by its seed. `ANABRANCH_SEEDS` sets how many.
fn random(run: impl Fn(&mut Input<'_>)) {
    for seed in crate::random::seeds(20_000) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..100)];
        // With small bytes, in half of the inputs, most lines are valid.
        let max = if seed % 2 == 0 { 64 } else { 255 };
        bytes.fill_with(|| rng.random_range(0..=max));
        println!("seed {seed}");
        run(&mut Input::new(&bytes));
    }
}

#[test]
fn a_head_is_the_same_however_it_is_cut() {
    random(|input| {
        let cut = usize::from(input.u8());
        let mut bytes = request_text(input);
        // A longer head is not read.
        bytes.truncate(MAX_HEAD);
        let head = read(&bytes, &[bytes.len()]);
        let in_parts = read(&bytes, &[cut, 1, 3]);
        if in_parts != head {
            // They may differ only in bytes after the head, which the read in parts has not seen.
            let Ok(Some(part)) = in_parts else {
                panic!("{head:?} and {in_parts:?}");
            };
            assert!(bytes.len() > part.len(), "no bytes after the head");
            let is_malformed = matches!(head, Err(UpgradeError::Malformed(_)));
            assert!(is_malformed, "{head:?}");
        }
        match head {
            Ok(Some(head)) => assert!(bytes.ends_with(&head)),
            Ok(None) => assert!(bytes.len() < MAX_HEAD),
            Err(_) => {}
        }
    });
}

#[test]
fn a_proxy_header_is_read_to_its_end_and_no_further() {
    random(|input| preamble_of(&request_text(input)));
}

#[test]
fn no_client_passes_for_another_through_a_trusted_proxy() {
    random(forwarded_of);
}

/// Reads a head that arrives in parts of these lengths, repeated.
fn read(bytes: &[u8], lengths: &[usize]) -> Result<Option<Vec<u8>>, UpgradeError> {
    let mut buffer = HeadBuffer::default();
    let mut rest = bytes;
    for length in lengths.iter().cycle() {
        if let Some(head) = buffer.look()? {
            return Ok(Some(head.to_vec()));
        }
        if rest.is_empty() || lengths.iter().all(|length| *length == 0) {
            break;
        }
        let (part, more) = rest.split_at((*length).min(rest.len()));
        buffer.push(part);
        rest = more;
    }
    Ok(buffer.look()?.map(<[u8]>::to_vec))
}

/// Checks that a PROXY header is read exactly to its end, and that its address is the one read.
fn preamble_of(bytes: &[u8]) {
    let mut rest = bytes;
    let read = futures_util::FutureExt::now_or_never(preamble::read(&mut rest));
    let result = read.expect("a slice is always ready");
    let len = bytes.len() - rest.len();
    assert!(len <= 16 + 4096, "{len}");
    let Ok(client) = result else {
        return;
    };
    let header = &bytes[..len];
    if let Some(line) = header.strip_prefix(b"PROXY ") {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r\n").expect("a line"));
        match client {
            Some(client) => {
                let words: Vec<&str> = line.split(' ').collect();
                assert_eq!(words[1].parse(), Ok(client.ip()));
                assert_eq!(words[3], client.port().to_string());
            }
            None => assert!(line.starts_with("UNKNOWN")),
        }
        return;
    }
    assert!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    assert_eq!(len, 16 + length);
}

/// Checks that the address added by a trusted proxy is found, or an error, whatever the client
/// sent before it.
fn forwarded_of(input: &mut Input<'_>) {
    let (header, added) = input.pick(&[
        (ProxyHeader::XForwardedFor, "192.0.2.7"),
        (ProxyHeader::XForwardedFor, "192.0.2.7:80"),
        (ProxyHeader::Forwarded, "for=192.0.2.7"),
        (ProxyHeader::Forwarded, "for=\"192.0.2.7:80\";proto=https"),
        (ProxyHeader::Forwarded, "host=\"\";for=\"192.0.2.7\";by=_a"),
    ]);
    let in_line = input.bool();
    let trusted = ["10.0.0.0/8".parse().expect("a network")];
    let proxies = TrustedProxies::new(trusted, header);
    let mut sent = request_text(input);
    sent.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
    let separate = format!(", {added}").into_bytes();
    let lines = match in_line {
        true => vec![[sent, separate].concat()],
        false => vec![sent, added.as_bytes().to_vec()],
    };
    let hop = "10.0.0.1:1".parse().expect("an address");
    let lines = lines.iter().map(Vec::as_slice);
    if let Ok(client) = forwarded::client(lines, &proxies, hop) {
        assert_eq!(client.ip().to_string(), "192.0.2.7");
    }
}
