//! INIT and its answer (RFC 9260 sections 3.3.2 and 3.3.3).

use super::packet::{Fields, kind, parameters, put_parameter};

/// Parameters of INIT and INIT-ACK.
const STATE_COOKIE: u16 = 7;
const ZERO_CHECKSUM_ACCEPTABLE: u16 = 0x8001;
const SUPPORTED_EXTENSIONS: u16 = 0x8008;
const FORWARD_TSN_SUPPORTED: u16 = 0xc000;

/// The extensions that aiortc lists, in its order.
const AIORTC: &[u8] = &[kind::FORWARD_TSN, kind::RE_CONFIG];

/// The peer's error detection is DTLS (RFC 9653 section 8).
const OVER_DTLS: u32 = 1;

/// As many streams as data channels can have (RFC 8831 section 6.2).
pub(super) const STREAMS: u16 = u16::MAX;

/// Longest cookie that is sent back. Those of known stacks have a few hundred bytes, and it has to fit a packet.
const MAX_COOKIE: usize = 1024;

/// What a side tells the other in INIT or INIT-ACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Init {
    /// The tag that it wants to see in each packet.
    pub(super) tag: u32,
    pub(super) window: u32,
    pub(super) first_tsn: u32,
    /// Streams that it takes from the other side (MIS, RFC 9260 section 3.3.2).
    pub(super) inbound_streams: u16,
    /// It takes packets without a checksum (RFC 9653).
    pub(super) zero_checksum: bool,
    /// It takes FORWARD-TSN (RFC 3758).
    pub(super) forward_tsn: bool,
    /// It takes FORWARD-TSN only while no message is received in part.
    pub(super) prunes: bool,
}

impl Init {
    /// `None` if it may not be answered. The cookie of an INIT-ACK comes with it.
    pub(super) fn parse(value: &[u8]) -> Option<(Self, Option<&[u8]>)> {
        let mut fields = Fields(value);
        let mut init = Self {
            tag: fields.u32()?,
            window: fields.u32()?,
            first_tsn: 0,
            inbound_streams: 0,
            zero_checksum: false,
            forward_tsn: false,
            prunes: false,
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
                // What is not known may be left out (RFC 9260 section 3.2.1): nothing else changes what we do.
                _ => {}
            }
        }
        // aiortc 1.15 drops the pieces of a message that is not whole yet behind the number that it passes on to
        // (`InboundStream.prune_chunks`), and no other stack offers just this.
        init.prunes = init.forward_tsn && extensions == AIORTC && !init.zero_checksum;
        // Its parameter alone counts. webrtc-rs names FORWARD-TSN among its extensions, without the
        // parameter, and says nothing any more once one has come (libp2p-webrtc, one dial in four);
        // pion does the same in its INIT, and takes them.
        Some((init, cookie))
    }

    /// The value of the chunk; with a cookie it is an INIT-ACK.
    pub(super) fn encode(&self, cookie: Option<&[u8]>) -> Vec<u8> {
        let mut value = Vec::with_capacity(64);
        value.extend(self.tag.to_be_bytes());
        value.extend(self.window.to_be_bytes());
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
        // Some look at the one parameter, and some at the other.
        let mut extensions = vec![kind::RE_CONFIG];
        if self.forward_tsn {
            put_parameter(&mut value, FORWARD_TSN_SUPPORTED, &[]);
            extensions.push(kind::FORWARD_TSN);
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
        window: 2,
        first_tsn: 3,
        inbound_streams: 4,
        zero_checksum: true,
        forward_tsn: true,
        prunes: false,
    };

    #[test]
    fn what_is_written_is_read() {
        for (zero_checksum, forward_tsn) in [(false, true), (true, false), (true, true)] {
            let init = Init {
                zero_checksum,
                forward_tsn,
                ..INIT
            };
            assert_eq!(Init::parse(&init.encode(None)), Some((init, None)));
            let cookie = &b"cookie"[..];
            let value = init.encode(Some(cookie));
            assert_eq!(Init::parse(&value), Some((init, Some(cookie))));
        }
    }

    /// As they are on the wire: aiortc 1.15, pion and webrtc-rs, ours.
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
