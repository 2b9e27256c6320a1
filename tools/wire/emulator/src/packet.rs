//! IP packets: their flow and their ECN field (RFC 3168).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub(crate) const NOT_ECT: u8 = 0b00;
pub(crate) const CE: u8 = 0b11;

/// A packet on its way through a direction.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) data: Vec<u8>,
    /// Its number in the table of flows.
    pub(crate) flow: u8,
    /// When it was read from the device.
    pub(crate) entered: Duration,
    /// How long it was in the queue.
    pub(crate) waited: Duration,
    /// The ECN field as the sender set it.
    pub(crate) sent_ecn: u8,
    /// Whether the queue has set CE.
    pub(crate) marked: bool,
}

impl Packet {
    pub(crate) fn new(data: Vec<u8>, flow: u8, entered: Duration) -> Self {
        let sent_ecn = ecn(&data);
        Self {
            data,
            flow,
            entered,
            waited: Duration::ZERO,
            sent_ecn,
            marked: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// Sets CE if the transport supports ECN. Returns whether it does.
    pub(crate) fn mark(&mut self) -> bool {
        match ecn(&self.data) {
            NOT_ECT => return false,
            CE => {}
            _ => {
                set_ecn(&mut self.data, CE);
                self.marked = true;
            }
        }
        true
    }

    /// Clears the ECN field.
    pub(crate) fn bleach(&mut self) {
        set_ecn(&mut self.data, NOT_ECT);
    }
}

/// The ECN field; [`NOT_ECT`] if this is no IP packet.
pub(crate) fn ecn(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => second & 0b11,
        [first, second, ..] if first >> 4 == 6 => (second >> 4) & 0b11,
        _ => NOT_ECT,
    }
}

/// Sets the ECN field, and updates the checksum of an IPv4 header by RFC 1624.
fn set_ecn(packet: &mut [u8], ecn: u8) {
    match packet {
        [first, second, .., _] if *first >> 4 == 6 => *second = *second & !0x30 | ecn << 4,
        [first, ..] if *first >> 4 == 4 && packet.len() >= 20 => {
            let before = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] = packet[1] & !0b11 | ecn;
            let after = u16::from_be_bytes([packet[0], packet[1]]);
            let checksum = u16::from_be_bytes([packet[10], packet[11]]);
            let mut sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            // Folded, so that it fits.
            packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        _ => {}
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The ends of a flow; ports are zero unless the protocol is TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    protocol: u8,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

impl Flow {
    /// That of a packet, if it is an IP packet.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let (protocol, from, to, payload) = match packet.first()? >> 4 {
            4 => {
                let header = packet.get(..20)?;
                let from: [u8; 4] = header[12..16].try_into().ok()?;
                let to: [u8; 4] = header[16..20].try_into().ok()?;
                let payload = usize::from(header[0] & 0xf) * 4;
                (
                    header[9],
                    IpAddr::from(Ipv4Addr::from(from)),
                    IpAddr::from(Ipv4Addr::from(to)),
                    packet.get(payload..)?,
                )
            }
            6 => {
                let header = packet.get(..40)?;
                let from: [u8; 16] = header[8..24].try_into().ok()?;
                let to: [u8; 16] = header[24..40].try_into().ok()?;
                (
                    header[6],
                    IpAddr::from(Ipv6Addr::from(from)),
                    IpAddr::from(Ipv6Addr::from(to)),
                    &packet[40..],
                )
            }
            _ => return None,
        };
        let (from_port, to_port) = match (protocol, payload) {
            (TCP | UDP, [a, b, c, d, ..]) => {
                (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
            }
            _ => (0, 0),
        };
        Some(Self {
            protocol,
            from: SocketAddr::new(from, from_port),
            to: SocketAddr::new(to, to_port),
        })
    }

    fn reversed(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            ..self
        }
    }

    pub(crate) fn protocol(&self) -> &'static str {
        match self.protocol {
            TCP => "tcp",
            UDP => "udp",
            _ => "other",
        }
    }
}

/// Numbers flows. Both directions of a flow have one number.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    known: Vec<Flow>,
}

/// The number of whatever is no flow, or found no number.
pub(crate) const OTHER: u8 = u8::MAX;

impl Flows {
    /// The number of the flow of a packet, and the flow itself if it is new.
    pub(crate) fn number(&mut self, packet: &[u8]) -> (u8, Option<Flow>) {
        let Some(flow) = Flow::of(packet) else {
            return (OTHER, None);
        };
        let reversed = flow.reversed();
        // Experiments have few flows.
        let found = self
            .known
            .iter()
            .position(|known| *known == flow || *known == reversed);
        if let Some(found) = found {
            return (u8::try_from(found).unwrap_or(OTHER), None);
        }
        match u8::try_from(self.known.len()) {
            Ok(number) if number != OTHER => {
                self.known.push(flow);
                (number, Some(flow))
            }
            _ => (OTHER, None),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A UDP packet over IPv4 of this length with a valid header checksum.
    pub(crate) fn udp(len: usize, ecn: u8) -> Vec<u8> {
        let mut data = vec![0; len];
        data[0] = 0x45;
        data[1] = 0xb8 | ecn;
        data[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        data[8] = 64;
        data[9] = UDP;
        data[12..16].copy_from_slice(&[10, 81, 0, 1]);
        data[16..20].copy_from_slice(&[10, 81, 0, 2]);
        data[20..24].copy_from_slice(&[0x10, 0x01, 0x20, 0x02]);
        let sum = !sum(&data[..20]);
        data[10..12].copy_from_slice(&sum.to_be_bytes());
        data
    }

    /// The sum of RFC 1071: 0xffff over a header whose checksum is valid.
    fn sum(header: &[u8]) -> u16 {
        let words = header
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_checksum_stays_valid_when_the_ecn_field_changes() {
        for from in 0..4 {
            for to in 0..4 {
                let mut data = udp(40, from);
                assert_eq!(sum(&data[..20]), 0xffff);
                set_ecn(&mut data, to);
                assert_eq!(ecn(&data), to);
                assert_eq!(data[1] & !0b11, 0xb8, "the DSCP stays");
                assert_eq!(sum(&data[..20]), 0xffff, "{from} to {to}");
            }
        }
    }

    #[test]
    fn only_packets_of_ecn_capable_transports_are_marked() {
        let mut not_ect = Packet::new(udp(40, NOT_ECT), 0, Duration::ZERO);
        assert!(!not_ect.mark() && !not_ect.marked);
        let mut ect = Packet::new(udp(40, 0b10), 0, Duration::ZERO);
        assert!(ect.mark() && ect.marked);
        assert_eq!((ecn(&ect.data), ect.sent_ecn), (CE, 0b10));
        ect.bleach();
        assert_eq!(ecn(&ect.data), NOT_ECT);
    }

    #[test]
    fn the_ecn_field_of_ipv6_is_that_of_the_traffic_class() {
        let mut data = vec![0; 40];
        data[..2].copy_from_slice(&[0x6f, 0xf5]);
        set_ecn(&mut data, 0b01);
        assert_eq!(data[..2], [0x6f, 0xd5]);
        assert_eq!(ecn(&data), 0b01);
    }

    #[test]
    fn both_directions_of_a_flow_have_one_number() {
        let mut flows = Flows::default();
        let forth = udp(40, 0);
        let mut back = forth.clone();
        back[12..20].rotate_left(4);
        back[20..24].rotate_left(2);
        let mut other = forth.clone();
        other[21] += 1;
        let (number, flow) = flows.number(&forth);
        let flow = flow.expect("a new one");
        assert_eq!((number, flow.protocol()), (0, "udp"));
        assert_eq!(flow.to.to_string(), "10.81.0.2:8194");
        assert_eq!(flows.number(&back), (0, None));
        assert_eq!(flows.number(&other).0, 1);
        assert_eq!(flows.number(&[0; 3]), (OTHER, None));
        assert_eq!(flows.number(&forth[..19]), (OTHER, None));
    }
}
