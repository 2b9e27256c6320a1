//! INIT and INIT-ACK (RFC 9260 sections 3.3.2 and 3.3.3).

use super::packet::{Fields, kind, parameters, put_parameter};

/// Parameters of INIT and INIT-ACK.
const STATE_COOKIE: u16 = 7;
const ZERO_CHECKSUM_ACCEPTABLE: u16 = 0x8001;
const SUPPORTED_EXTENSIONS: u16 = 0x8008;
const FORWARD_TSN_SUPPORTED: u16 = 0xc000;

/// The extension list of aiortc, in its order.
const AIORTC: &[u8] = &[kind::FORWARD_TSN, kind::RE_CONFIG];

/// Error detection by DTLS (RFC 9653 section 8).
const OVER_DTLS: u32 = 1;

/// Number of streams that data channels can use (RFC 8831 section 6.2).
pub(super) const STREAMS: u16 = u16::MAX;

/// Longest accepted cookie. Those of known stacks have a few hundred bytes, and COOKIE-ECHO has to
/// fit a packet.
const MAX_COOKIE: usize = 1024;

/// Contents of INIT or INIT-ACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Init {
    /// Initiate tag: the verification tag of packets to this side.
    pub(super) tag: u32,
    pub(super) a_rwnd: u32,
    pub(super) first_tsn: u32,
    /// Maximum inbound streams (MIS, RFC 9260 section 3.3.2).
    pub(super) inbound_streams: u16,
    /// Accepts packets without a checksum (RFC 9653).
    pub(super) zero_checksum: bool,
    /// Supports FORWARD-TSN (RFC 3758).
    pub(super) forward_tsn: bool,
    /// FORWARD-TSN is safe only while no message is partially received.
    pub(super) prunes: bool,
    /// Reports ECN counts.
    pub(super) ecn: bool,
    /// Establishes the association with INIT and INIT-ACK alone.
    pub(super) without_cookie: bool,
    /// Takes DATA chunks in segments.
    pub(super) segments: bool,
}

impl Init {
    /// Parses the value of INIT or INIT-ACK, and returns the cookie of the latter. `None` if it
    /// must not be answered.
    pub(super) fn parse(value: &[u8]) -> Option<(Self, Option<&[u8]>)> {
        let mut fields = Fields(value);
        let mut init = Self {
            tag: fields.u32()?,
            a_rwnd: fields.u32()?,
            first_tsn: 0,
            inbound_streams: 0,
            zero_checksum: false,
            forward_tsn: false,
            prunes: false,
            ecn: false,
            without_cookie: false,
            segments: false,
        };
        let outbound = fields.u16()?;
        init.inbound_streams = fields.u16()?;
        init.first_tsn = fields.u32()?;
        // RFC 9260 sections 3.3.2.1 to 3.3.2.4.
        if init.tag == 0 || outbound == 0 || init.inbound_streams == 0 {
            return None;
        }
        let (mut cookie, mut extensions) = (None, &[][..]);
        for (kind, value) in parameters(fields.0) {
            match kind {
                STATE_COOKIE if value.len() <= MAX_COOKIE => cookie = Some(value),
                ZERO_CHECKSUM_ACCEPTABLE => {
                    init.zero_checksum = Fields(value).u32() == Some(OVER_DTLS);
                }
                FORWARD_TSN_SUPPORTED => init.forward_tsn = true,
                SUPPORTED_EXTENSIONS => extensions = value,
                // Other parameters change nothing here, and need no report (RFC 9260 section
                // 3.2.1).
                _ => {}
            }
        }
        // On FORWARD-TSN, aiortc 1.15 drops the fragments of an incomplete message after the new
        // cumulative TSN (`InboundStream.prune_chunks`). No other stack offers exactly these
        // extensions.
        init.prunes = init.forward_tsn && extensions == AIORTC && !init.zero_checksum;
        init.ecn = extensions.contains(&kind::ECN_COUNTS);
        init.segments = extensions.contains(&kind::SEGMENT);
        init.without_cookie = extensions.contains(&kind::WITHOUT_COOKIE);
        // Only the parameter of FORWARD-TSN counts. webrtc-rs lists the chunk among its extensions
        // without the parameter, and stops responding once it receives one (libp2p-webrtc, one dial
        // in four). pion sends the same INIT, but accepts the chunk.
        Some((init, cookie))
    }

    /// Encodes the value of the chunk: an INIT-ACK if there is a cookie, an INIT otherwise.
    pub(super) fn encode(&self, cookie: Option<&[u8]>) -> Vec<u8> {
        let mut value = Vec::with_capacity(64);
        value.extend(self.tag.to_be_bytes());
        value.extend(self.a_rwnd.to_be_bytes());
        value.extend(STREAMS.to_be_bytes());
        value.extend(self.inbound_streams.to_be_bytes());
        value.extend(self.first_tsn.to_be_bytes());
        if let Some(cookie) = cookie {
            put_parameter(&mut value, STATE_COOKIE, cookie);
        }
        if self.zero_checksum {
            let acceptable = OVER_DTLS.to_be_bytes();
            put_parameter(&mut value, ZERO_CHECKSUM_ACCEPTABLE, &acceptable);
        }
        // Some stacks look at the extension list, others at the parameter.
        let mut extensions = vec![kind::RE_CONFIG];
        if self.forward_tsn {
            put_parameter(&mut value, FORWARD_TSN_SUPPORTED, &[]);
            extensions.push(kind::FORWARD_TSN);
        }
        // In the list that every stack reads, and not parameters of their own: pion before 1.8.11
        // rejects an INIT with an unknown one.
        if self.ecn {
            extensions.push(kind::ECN_COUNTS);
        }
        if self.segments {
            extensions.push(kind::SEGMENT);
        }
        if self.without_cookie {
            extensions.push(kind::WITHOUT_COOKIE);
        }
        put_parameter(&mut value, SUPPORTED_EXTENSIONS, &extensions);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: Init = Init {
        tag: 1,
        a_rwnd: 2,
        first_tsn: 3,
        inbound_streams: 4,
        zero_checksum: true,
        forward_tsn: true,
        prunes: false,
        ecn: true,
        without_cookie: true,
        segments: true,
    };

    #[test]
    fn what_is_written_is_read() {
        for (zero_checksum, forward_tsn, ecn, without_cookie, segments) in [
            (false, true, true, true, true),
            (true, false, true, true, true),
            (true, true, false, true, true),
            (true, true, true, false, true),
            (true, true, true, true, false),
        ] {
            let init = Init {
                zero_checksum,
                forward_tsn,
                ecn,
                without_cookie,
                segments,
                ..INIT
            };
            assert_eq!(Init::parse(&init.encode(None)), Some((init, None)));
            let cookie = &b"cookie"[..];
            let value = init.encode(Some(cookie));
            assert_eq!(Init::parse(&value), Some((init, Some(cookie))));
        }
    }

    /// The parameters on the wire of aiortc 1.15, of pion and webrtc-rs, and of this crate.
    #[test]
    fn who_takes_forward_tsn_and_who_prunes_is_known_by_what_it_offers() {
        let aiortc: &[u8] = &[0xc0, 0, 0, 4, 0x80, 8, 0, 6, 192, 130, 0, 0];
        let extensions_alone: &[u8] = &[0x80, 8, 0, 6, 130, 192, 0, 0];
        let fixed = INIT.encode(None);
        let fixed = &fixed[..16];
        let parse = |parameters| Init::parse(&[fixed, parameters].concat()).unwrap().0;
        let offers = |init: Init| (init.forward_tsn, init.prunes);
        assert_eq!(offers(parse(aiortc)), (true, true));
        assert_eq!(offers(parse(extensions_alone)), (false, false));
        assert_eq!(offers(parse(&[])), (false, false));
        let (ours, _) = Init::parse(&INIT.encode(None)).unwrap();
        assert_eq!(offers(ours), (true, false));
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let value = INIT.encode(Some(b"cookie"));
        for end in 0..16 {
            assert_eq!(Init::parse(&value[..end]), None);
        }
        for (field, length) in [(0, 4), (8, 2), (10, 2)] {
            let mut without = value.clone();
            without[field..field + length].fill(0);
            assert_eq!(Init::parse(&without), None, "field at {field}");
        }
        let long = INIT.encode(Some(&[1; MAX_COOKIE + 1]));
        assert_eq!(Init::parse(&long), Some((INIT, None)));
    }
}
