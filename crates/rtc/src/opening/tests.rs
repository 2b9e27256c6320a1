//! That records are opened once, whatever their numbers are, and that dimpl gets what it needs.

use std::collections::HashSet;

use super::*;
use crate::dtls::{PacedDtls, Versions};
use crate::engine::Certificate;
use dimpl::Output;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

#[test]
fn a_window_knows_each_number_once_and_the_old_ones_as_seen() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut window = Window::after(7);
        let (mut seen, mut highest) = (HashSet::new(), 7_u64);
        for _ in 0..20_000 {
            let number = match rng.random_range(0..10) {
                0 => highest + rng.random_range(1..3000),
                1..=5 => highest + 1,
                _ => highest.saturating_sub(rng.random_range(0..1500)),
            };
            if number <= 7 {
                continue;
            }
            let is_old = highest / 64 >= number / 64 + Window::WORDS;
            let expected = number <= highest && (is_old || seen.contains(&number));
            assert_eq!(
                window.is_seen(number),
                expected,
                "seed {seed}: {number}, {highest}"
            );
            if !expected {
                window.note(number);
                seen.insert(number);
                highest = highest.max(number);
            }
            assert!(window.is_seen(number) && !window.is_seen(highest + 1));
        }
    }
}

#[test]
fn a_number_is_completed_to_the_closest_one() {
    for expected in [0, 1, 40_000, 65_535, 65_536, 1 << 40, u64::MAX >> 1] {
        for distance in [-30_000_i64, -1, 0, 1, 30_000] {
            if let Some(number) = expected.checked_add_signed(distance) {
                assert_eq!(complete(number as u16, expected), number);
            }
        }
    }
    assert_eq!(complete(65_000, 3), 65_000, "there is no number below 0");
}

struct Pair {
    client: PacedDtls,
    server: PacedDtls,
    now: Instant,
}

#[derive(Default)]
struct Received {
    datagrams: Vec<Vec<u8>>,
    data: Vec<Vec<u8>>,
    is_closed: bool,
}

fn drain(dtls: &mut PacedDtls) -> Received {
    let mut received = Received::default();
    let mut buffer = [0; 4096];
    loop {
        match dtls.poll_output(&mut buffer) {
            Output::Packet(datagram) => received.datagrams.push(datagram.to_vec()),
            Output::ApplicationData(data) => received.data.push(data.to_vec()),
            Output::CloseNotify => received.is_closed = true,
            Output::Timeout(_) => return received,
            _ => {}
        }
    }
}

impl Pair {
    fn established() -> Self {
        let now = Instant::now();
        let [client, server] = [true, false].map(|is_active| {
            let made = rcgen::generate_simple_self_signed(vec!["test".into()]).unwrap();
            let certificate = Certificate {
                der: made.cert.der().to_vec(),
                private_key: made.signing_key.serialize_der(),
            };
            let mut dtls = PacedDtls::new(certificate, Versions::Both, Some(1200), now).unwrap();
            dtls.set_active(is_active);
            dtls.handle_timeout(now).unwrap();
            dtls
        });
        let mut pair = Self {
            client,
            server,
            now,
        };
        for _ in 0..10 {
            pair.now += Duration::from_millis(1);
            for datagram in drain(&mut pair.client).datagrams {
                pair.server.handle_packet(&datagram).unwrap();
            }
            for datagram in drain(&mut pair.server).datagrams {
                pair.client.handle_packet(&datagram).unwrap();
            }
        }
        pair
    }

    /// A record of the client.
    fn record(&mut self, data: &[u8]) -> Vec<u8> {
        self.client.send_application_data(data).unwrap();
        let mut datagrams = drain(&mut self.client).datagrams;
        assert_eq!(datagrams.len(), 1);
        datagrams.remove(0)
    }

    /// Whether a record reaches the server past dimpl; and its data.
    fn deliver(&mut self, record: &[u8]) -> (bool, Vec<Vec<u8>>) {
        let mut opened = Vec::new();
        let _ = self
            .server
            .open_packet(record, |data| opened.push(data.to_vec()));
        let is_quick = !opened.is_empty();
        opened.extend(drain(&mut self.server).data);
        (is_quick, opened)
    }
}

#[test]
fn data_comes_once_past_dimpl_after_the_first_records_and_nothing_forged_does() {
    let mut pair = Pair::established();
    let mut rng = StdRng::seed_from_u64(1);
    let mut quick = 0;
    for round in 0..200_u32 {
        let batch: Vec<Vec<u8>> = (0..8)
            .map(|n| {
                [
                    &round.to_be_bytes()[..],
                    &[n],
                    &vec![0; usize::from(n) * 100],
                ]
                .concat()
            })
            .collect();
        let mut records: Vec<Vec<u8>> = batch.iter().map(|data| pair.record(data)).collect();
        // Out of order, each of them twice, and forgeries in between.
        records.extend(records.clone());
        records.shuffle(&mut rng);
        let mut got = HashSet::new();
        for record in records {
            let mut forged = record.clone();
            let at = rng.random_range(0..forged.len());
            forged[at] ^= 1 << rng.random_range(0..8);
            assert_eq!(pair.deliver(&forged).1, Vec::<Vec<u8>>::new());
            let (is_quick, data) = pair.deliver(&record);
            quick += u32::from(is_quick);
            for data in data {
                assert!(got.insert(data), "it came before");
            }
        }
        assert_eq!(got, batch.into_iter().collect());
    }
    // Those whose numbers are below the one from which the keys were taken are for dimpl.
    let first = FIRST_RECORDS + 1..FIRST_RECORDS + 9;
    assert!(first.contains(&(200 * 8 - quick)), "{quick}");
}

/// A header has 16 bits of the number: dimpl has to keep up, or it could not read the end.
#[test]
fn the_close_is_read_after_more_records_than_a_header_can_number() {
    let mut pair = Pair::established();
    let mut through_dimpl = 0;
    for n in 0..150_000_u32 {
        let record = pair.record(&n.to_be_bytes());
        let (is_quick, data) = pair.deliver(&record);
        assert_eq!(data, [n.to_be_bytes()]);
        through_dimpl += u32::from(!is_quick);
    }
    assert!((80..100).contains(&through_dimpl), "{through_dimpl}");
    pair.client.close().unwrap();
    let mut is_closed = false;
    for datagram in drain(&mut pair.client).datagrams {
        let opened = pair
            .server
            .open_packet(&datagram, |_| panic!("it has no data"));
        opened.unwrap();
        is_closed |= drain(&mut pair.server).is_closed;
    }
    assert!(is_closed);
}
