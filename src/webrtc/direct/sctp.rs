//! SCTP: one association of sctp-proto, and the window updates that it does not send.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use sctp_proto::{
    Association, Chunks, ClientConfig, DatagramEvent, Endpoint, EndpointConfig, Event, Payload,
    PayloadProtocolIdentifier, ServerConfig, TransportConfig,
};

use super::super::engine::Role;
use crate::connection::ConnectionError;

/// What DTLS adds to a packet at most: header 13, explicit nonce 8, tag 16 (1.2 with AES-GCM).
const DTLS_OVERHEAD: usize = 37;

/// The header of every packet (RFC 9260 section 3.1).
const COMMON_HEADER: usize = 12;

/// The header of a DATA chunk (RFC 9260 section 3.3.1).
const DATA_HEADER: usize = 16;

/// Longest message accepted. libp2p's have 16 KiB at most. sctp-proto looks through all chunks of an
/// unfinished message for each that comes, and a peer can make them as short as it likes.
const MAX_MESSAGE: u32 = 64 * 1024;

/// Before a round trip was measured: RFC 9260 says 1 s, but DTLS has just shown that the path is
/// no slower than this.
const RTO_INITIAL_MS: u64 = 500;

/// RFC 9260 says 1 s. It has to be above the 200 ms that peers delay an acknowledgement for.
const RTO_MIN_MS: u64 = 300;

/// RFC 9260 says 60 s. This is how long an outage can go on when it is over, and a window that was
/// shut when it is open: sctp-proto tries again by this timer alone.
const RTO_MAX_MS: u64 = 3000;

/// sctp-proto wants to know where the peer is, and there is only one.
const PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000));

/// Chunk types (RFC 9260 section 3.2).
const CHUNK_DATA: u8 = 0;
const CHUNK_SACK: u8 = 3;

/// A SACK without gaps (RFC 9260 section 3.3.4).
const SACK_HEADER: usize = 16;

/// DATA flags: I (RFC 7053), B and E.
const FLAGS_SACK_AT_ONCE: u8 = 0x08 | 0x02 | 0x01;

const CRC32C: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// What our last SACK told the peer.
#[derive(Debug, Clone, Copy)]
struct Sack {
    cumulative_tsn: [u8; 4],
    window: usize,
}

/// The SCTP association of a connection.
pub(super) struct Sctp {
    endpoint: Endpoint,
    association: Option<Association>,
    transport: Arc<TransportConfig>,
    receive_buffer: usize,
    /// Longest packet that fits a datagram.
    max_packet: usize,
    /// Ports and verification tag of the packets that come in (RFC 9260 section 3.1).
    inbound_header: Option<[u8; 8]>,
    last_sack: Option<Sack>,
    /// Bytes read since that.
    read_since_sack: usize,
}

impl Sctp {
    pub(super) fn new(mtu: usize, receive_buffer: usize) -> Self {
        // Chunks are padded to a multiple of four (RFC 9260 section 3.2), which sctp-proto does not
        // count: a packet that is full to another length would have to be split each time.
        let max_packet = mtu.saturating_sub(DTLS_OVERHEAD) & !3;
        let payload = max_packet.saturating_sub(COMMON_HEADER + DATA_HEADER);
        let mut config = EndpointConfig::new();
        config.max_payload_size(u32::try_from(payload).unwrap_or(u32::MAX));
        let window = u32::try_from(receive_buffer).unwrap_or(u32::MAX);
        let transport = Arc::new(
            TransportConfig::default()
                .with_max_receive_buffer_size(window)
                .with_max_receive_message_size(MAX_MESSAGE)
                .with_max_send_message_size(MAX_MESSAGE)
                // How long to try is for ICE and the deadline of the handshake to say.
                .with_max_init_retransmits(None)
                .with_max_data_retransmits(None)
                .with_rto_initial_ms(RTO_INITIAL_MS)
                .with_rto_min_ms(RTO_MIN_MS)
                .with_rto_max_ms(RTO_MAX_MS),
        );
        // A client needs one too: without it sctp-proto panics at an INIT of the peer.
        let mut server = ServerConfig::new();
        server.transport = Arc::clone(&transport);
        Self {
            endpoint: Endpoint::new(Arc::new(config), Some(Arc::new(server))),
            association: None,
            transport,
            receive_buffer: window as usize,
            max_packet,
            inbound_header: None,
            last_sack: None,
            read_since_sack: 0,
        }
    }

    /// DTLS is up: the client sets the association up, the server waits for it.
    pub(super) fn start(&mut self, role: Role) -> Result<(), ConnectionError> {
        if role == Role::Server {
            return Ok(());
        }
        let mut config = ClientConfig::new();
        config.transport = Arc::clone(&self.transport);
        let (_, association) = self
            .endpoint
            .connect(config, PEER)
            .map_err(|error| ConnectionError::Carrier(format!("SCTP does not start: {error}")))?;
        // An INIT of the peer's own is not needed: it answers ours (RFC 9260 section 5.2).
        self.endpoint.reject_new_associations();
        self.association = Some(association);
        Ok(())
    }

    /// Bytes of a message in a packet that carries nothing else.
    pub(super) fn packet_payload(&self) -> usize {
        self.max_packet.saturating_sub(COMMON_HEADER + DATA_HEADER)
    }

    /// Takes in a packet.
    pub(super) fn handle_packet(&mut self, now: Instant, packet: Bytes) {
        // An INIT has tag 0; every other packet has the one that we chose.
        if let Some(header) = packet.first_chunk::<8>()
            && header.get(4..) != Some(&[0; 4])
        {
            self.inbound_header = Some(*header);
        }
        match self.endpoint.handle(now, PEER, None, None, packet) {
            Some((_, DatagramEvent::AssociationEvent(event))) => {
                if let Some(association) = &mut self.association {
                    association.handle_event(event);
                }
            }
            Some((_, DatagramEvent::NewAssociation(association))) => {
                if self.association.is_none() {
                    self.association = Some(association);
                }
                // One is all there is, and each more would leave something in the endpoint.
                self.endpoint.reject_new_associations();
            }
            None => {}
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(association) = &mut self.association {
            association.handle_timeout(now);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.association.as_ref()?.poll_timeout()
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        let association = self.association.as_mut()?;
        // These tell an endpoint with many associations to forget one.
        while association.poll_endpoint_event().is_some() {}
        // Kept for `accept_stream`, for which there is an event as well.
        while association.accept_stream().is_some() {}
        association.poll()
    }

    /// The next packets to send: all that the windows allow.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        if self.window_update_due() {
            self.send_window_update(now);
        }
        let Payload::RawEncode(mut packets) =
            self.association.as_mut()?.poll_transmit(now)?.payload
        else {
            return None;
        };
        for packet in &packets {
            if let Some(sack) = parse_sack(packet) {
                self.last_sack = Some(sack);
                self.read_since_sack = 0;
            }
        }
        if packets.iter().any(|packet| packet.len() > self.max_packet) {
            let whole = std::mem::take(&mut packets);
            for packet in whole {
                split(packet, self.max_packet, &mut packets);
            }
        }
        Some(packets)
    }

    /// Makes a stream; `false` if that can not be now.
    pub(super) fn open_stream(&mut self, id: u16) -> bool {
        self.association.as_mut().is_some_and(|association| {
            association
                .open_stream(id, PayloadProtocolIdentifier::Binary)
                .is_ok()
        })
    }

    /// Queues a message, which must not be empty: sctp-proto would use up a sequence number for
    /// nothing and so stop the stream for ever.
    pub(super) fn write(
        &mut self,
        id: u16,
        message: &[u8],
        protocol: PayloadProtocolIdentifier,
    ) -> bool {
        self.association
            .as_mut()
            .and_then(|association| association.stream(id).ok())
            .is_some_and(|mut stream| stream.write_with_ppi(message, protocol).is_ok())
    }

    /// As [`Self::write`] for a binary message, which is taken without a copy.
    pub(super) fn write_binary(&mut self, id: u16, message: Bytes) -> bool {
        let Some(mut stream) = self
            .association
            .as_mut()
            .and_then(|association| association.stream(id).ok())
        else {
            return false;
        };
        // A stream that the peer has opened has a default of its own.
        stream
            .set_default_payload_type(PayloadProtocolIdentifier::Binary)
            .and_then(|()| stream.write_chunks(&mut [message]))
            .is_ok()
    }

    /// The next whole message of a stream.
    pub(super) fn read(&mut self, id: u16) -> Option<Chunks> {
        let mut stream = self.association.as_mut()?.stream(id).ok()?;
        let message = stream.read_sctp().ok()??;
        self.read_since_sack = self.read_since_sack.saturating_add(message.len());
        Some(message)
    }

    /// Bytes of a stream that the peer has not acknowledged.
    pub(super) fn unacknowledged(&mut self, id: u16) -> usize {
        self.association
            .as_mut()
            .and_then(|association| association.stream(id).ok()?.buffered_amount().ok())
            .unwrap_or(0)
    }

    /// Resets a stream once what was written to it is acknowledged. Nothing can be read from it
    /// any more, and what still arrives takes room in the window until the peer resets its side.
    pub(super) fn reset_stream(&mut self, id: u16) {
        if let Some(association) = &mut self.association
            && let Ok(mut stream) = association.stream(id)
        {
            // Fails if the association is closed, and then so is the stream.
            let _ = stream.close();
        }
    }

    /// Ends the association in order (RFC 9260 section 9.2).
    pub(super) fn shutdown(&mut self) {
        if let Some(association) = &mut self.association {
            // Fails if it is closing already.
            let _ = association.shutdown();
        }
    }

    /// Whether the peer believes in a window much smaller than it is.
    ///
    /// sctp-proto sends a SACK only for DATA that comes in: with the window shut none comes, and
    /// after reads the peer would learn of it from its own probe, whole seconds later (5 of 105
    /// MB/s with a slow reader). An update for every read would be an update for every packet.
    pub(super) fn window_update_due(&self) -> bool {
        self.last_sack
            .is_some_and(|sack| sack.window < self.receive_buffer / 2)
            && self.read_since_sack >= self.receive_buffer / 4
    }

    /// Whether the peer was told of less than a quarter of the window.
    pub(super) fn is_window_tight(&self) -> bool {
        self.last_sack
            .is_some_and(|sack| sack.window < self.receive_buffer / 4)
    }

    /// Makes sctp-proto send a SACK, by giving it a DATA chunk that it has received before, with
    /// the bit that asks for one at once (RFC 7053). It drops the duplicate by its number alone.
    fn send_window_update(&mut self, now: Instant) {
        // Whatever comes of it, not again before there is another reason.
        self.read_since_sack = 0;
        let (Some(header), Some(sack)) = (self.inbound_header, self.last_sack) else {
            return;
        };
        let mut packet = BytesMut::with_capacity(32);
        packet.put_slice(&header);
        packet.put_bytes(0, 4);
        packet.put_slice(&[CHUNK_DATA, FLAGS_SACK_AT_ONCE, 0, 17]);
        packet.put_slice(&sack.cumulative_tsn);
        // Stream, sequence number and payload protocol, then one byte and its padding.
        packet.put_bytes(0, 12);
        put_checksum(&mut packet);
        self.handle_packet(now, packet.freeze());
    }
}

/// Fills the checksum in, which is 0 so far (RFC 9260 section 6.8).
pub(super) fn put_checksum(packet: &mut [u8]) {
    let checksum = CRC32C.checksum(packet);
    if let Some(field) = packet.get_mut(8..COMMON_HEADER) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Makes packets of at most `max` bytes of one whose chunks are more.
///
/// sctp-proto bundles chunks without counting their padding, nor the header of the last one: many
/// short messages at once made packets longer by 60 bytes.
fn split(packet: Bytes, max: usize, out: &mut Vec<Bytes>) {
    if packet.len() <= max {
        return out.push(packet);
    }
    let (header, mut chunks) = packet.split_at(COMMON_HEADER);
    let mut part = BytesMut::new();
    while let Some(&[_, _, high, low]) = chunks.first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).next_multiple_of(4);
        let (chunk, rest) = chunks.split_at(length.clamp(4, chunks.len()));
        chunks = rest;
        let Some(chunk) = shorten(chunk, max.saturating_sub(COMMON_HEADER)) else {
            // As good as lost on a path that can not carry it.
            continue;
        };
        if !part.is_empty() && part.len() + chunk.len() > max {
            put_checksum(&mut part);
            out.push(part.split().freeze());
        }
        if part.is_empty() {
            part.reserve(max);
            part.put_slice(header.get(..8).unwrap_or_default());
            part.put_bytes(0, 4);
        }
        part.put_slice(&chunk);
    }
    if !part.is_empty() {
        put_checksum(&mut part);
        out.push(part.freeze());
    }
}

/// The chunk with at most `max` bytes, if it has a shorter form.
///
/// sctp-proto reports every gap in what a peer sends, and a peer can leave as many as it likes; the
/// first that fit are what RFC 9260 section 3.3.4 asks for. Nothing else of ours is that long
/// but answers that hold what the peer has sent, such as that to a HEARTBEAT.
fn shorten(chunk: &[u8], max: usize) -> Option<Cow<'_, [u8]>> {
    if chunk.len() <= max {
        return Some(Cow::Borrowed(chunk));
    }
    if chunk.first() != Some(&CHUNK_SACK) {
        return None;
    }
    let gaps = max.checked_sub(SACK_HEADER)? / 4;
    let length = SACK_HEADER + 4 * gaps;
    let mut short = chunk.get(..length)?.to_vec();
    let count = u16::from_be_bytes(*short.get(12..)?.first_chunk()?);
    let count = count.min(u16::try_from(gaps).ok()?);
    short.truncate(SACK_HEADER + 4 * usize::from(count));
    let length = u16::try_from(short.len()).ok()?;
    short.get_mut(2..4)?.copy_from_slice(&length.to_be_bytes());
    short.get_mut(12..14)?.copy_from_slice(&count.to_be_bytes());
    // Numbers that came twice are for information only, and stood behind the gaps.
    short.get_mut(14..16)?.fill(0);
    Some(Cow::Owned(short))
}

/// The SACK of a packet: sctp-proto sends each in a packet of its own (RFC 9260 section 3.3.4).
fn parse_sack(packet: &[u8]) -> Option<Sack> {
    let chunk = packet.get(COMMON_HEADER..)?;
    if chunk.first() != Some(&CHUNK_SACK) {
        return None;
    }
    let cumulative_tsn = *chunk.get(4..)?.first_chunk()?;
    let window = u32::from_be_bytes(*chunk.get(8..)?.first_chunk()?);
    Some(Sack {
        cumulative_tsn,
        window: window as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sack(gaps: u16, duplicates: u16) -> Vec<u8> {
        let mut packet = vec![0; COMMON_HEADER];
        let length = 16 + 4 * (gaps + duplicates);
        packet.put_slice(&[CHUNK_SACK, 0]);
        packet.put_u16(length);
        packet.put_slice(&[9, 9, 9, 9, 0, 0, 8, 0]);
        packet.put_u16(gaps);
        packet.put_u16(duplicates);
        for gap in 0..gaps {
            packet.put_u16(2 * gap + 2);
            packet.put_u16(2 * gap + 2);
        }
        packet.put_bytes(7, 4 * usize::from(duplicates));
        packet
    }

    fn split_up(packet: Vec<u8>) -> Vec<Bytes> {
        let mut packets = Vec::new();
        split(packet.into(), 1160, &mut packets);
        packets
    }

    #[test]
    fn a_sack_with_more_gaps_than_fit_tells_of_the_first() {
        for (gaps, duplicates) in [(284, 0), (400, 3), (10, 300), (4000, 4000)] {
            let packets = split_up(sack(gaps, duplicates));
            assert_eq!(packets.len(), 1);
            let told = gaps.min(283);
            let mut expected = sack(told, 0);
            put_checksum(&mut expected);
            assert_eq!(packets[0], expected, "{gaps} {duplicates}");
            assert!(packets[0].len() <= 1160);
        }
    }

    #[test]
    fn an_answer_that_is_too_long_is_not_sent_and_those_beside_it_are() {
        let mut packet = vec![0; COMMON_HEADER];
        packet.put_slice(&[5, 0]);
        packet.put_u16(1900);
        packet.put_bytes(1, 1896);
        assert!(split_up(packet.clone()).is_empty());
        packet.put_slice(&[11, 0, 0, 4]);
        let packets = split_up(packet);
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0][COMMON_HEADER..], [11, 0, 0, 4]);
    }
}
