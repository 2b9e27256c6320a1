//! That records are opened once, whatever their numbers are, and that dimpl gets what it needs.

use std::collections::HashSet;

use super::*;
use crate::dtls::PacedDtls;
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
        let mut window = Window::default();
        window.note(7);
        let (mut seen, mut highest) = (HashSet::from([7]), 7_u64);
        for _ in 0..20_000 {
            let number = match rng.random_range(0..10) {
                0 => highest + rng.random_range(1..3000),
                1..=5 => highest + 1,
                _ => highest.saturating_sub(rng.random_range(0..1500)),
            };
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
    for expected in [0, 1, 200, 40_000, 65_535, 65_536, 1 << 40, u64::MAX >> 1] {
        for (distance, is_short) in [
            (-30_000_i64, false),
            (-100, true),
            (-1, true),
            (0, true),
            (1, true),
            (100, true),
            (30_000, false),
        ] {
            let Some(number) = expected.checked_add_signed(distance) else {
                continue;
            };
            assert_eq!(LowBits::Sixteen(number as u16).complete(expected), number);
            if is_short {
                assert_eq!(LowBits::Eight(number as u8).complete(expected), number);
            }
        }
    }
    let low = LowBits::Sixteen(65_000).complete(3);
    assert_eq!(low, 65_000, "there is no number below 0");
}

struct Pair {
    client: PacedDtls,
    server: PacedDtls,
    now: Instant,
    /// What the server has to send.
    answers: Vec<Vec<u8>>,
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
        Self::with_key_limit(1 << 23)
    }

    fn with_key_limit(limit: u64) -> Self {
        let now = Instant::now();
        let [client, server] = [true, false].map(|is_active| {
            let made = rcgen::generate_simple_self_signed(vec!["test".into()]).unwrap();
            let certificate = Certificate {
                der: made.cert.der().to_vec(),
                private_key: made.signing_key.serialize_der(),
            };
            let mut dtls = PacedDtls::with_key_limit(certificate, limit, now);
            dtls.set_active(is_active);
            dtls.handle_timeout(now).unwrap();
            dtls
        });
        let mut pair = Self {
            client,
            server,
            now,
            answers: Vec::new(),
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

    /// The records of the client for some data, and what else it has to send.
    fn record_and_more(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        self.client.send_application_data(data).unwrap();
        drain(&mut self.client).datagrams
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
        let rest = drain(&mut self.server);
        opened.extend(rest.data);
        self.answers.extend(rest.datagrams);
        (is_quick, opened)
    }
}

#[test]
fn data_comes_once_past_dimpl_after_the_first_records_and_nothing_forged_does() {
    let mut pair = Pair::established();
    let mut rng = StdRng::seed_from_u64(1);
    let mut quick = 0;
    for round in 0..200_u32 {
        // Not a divisor of the first records: the hand-over is within a batch.
        let batch: Vec<Vec<u8>> = (0..7)
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
    // And one now and then.
    let first = FIRST_RECORDS + 1..FIRST_RECORDS + 4;
    assert!(first.contains(&(200 * 7 - quick)), "{quick}");
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
        through_dimpl += u64::from(!is_quick);
    }
    let expected = FIRST_RECORDS as u64 + 1 + 150_000 / FORWARD_EVERY;
    assert!(
        (expected - 2..expected + 2).contains(&through_dimpl),
        "{through_dimpl}"
    );
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

/// Data that overtakes the close is dropped, and what was sent before it is not.
#[test]
fn nothing_that_was_sent_after_the_close_is_data() {
    let mut pair = Pair::established();
    for n in 0..100_u8 {
        let record = pair.record(&[n]);
        pair.deliver(&record);
    }
    let before = pair.record(b"before");
    pair.client.close().unwrap();
    let close = drain(&mut pair.client).datagrams;
    let mut opened = Vec::new();
    for record in [&close[0], &before, &before] {
        let result = pair
            .server
            .open_packet(record, |data| opened.push(data.to_vec()));
        result.unwrap();
    }
    assert_eq!(opened, [b"before"]);
    assert!(drain(&mut pair.server).is_closed);
}

/// Every record of an epoch, delivered again after the next one has begun.
#[test]
fn no_record_of_an_epoch_that_is_over_is_opened_again() {
    let mut pair = Pair::with_key_limit(300);
    let mut sent = Vec::new();
    let mut epochs = HashSet::new();
    let mut quick = 0;
    for n in 0..3_000_u32 {
        let record = pair.record_and_more(&n.to_be_bytes());
        for record in record {
            epochs.insert(record[0] & EPOCH);
            let (is_quick, data) = pair.deliver(&record);
            assert!(data.is_empty() || data == [n.to_be_bytes()]);
            quick += u32::from(is_quick);
            sent.push(record);
        }
        // Acknowledgements.
        pair.now += Duration::from_millis(50);
        pair.server.handle_timeout(pair.now).unwrap();
        pair.answers.extend(drain(&mut pair.server).datagrams);
        for answer in std::mem::take(&mut pair.answers) {
            pair.client.handle_packet(&answer).unwrap();
        }
        pair.client.handle_timeout(pair.now).unwrap();
        if n % 250 == 249 {
            for record in &sent {
                assert_eq!(pair.deliver(record).1, Vec::<Vec<u8>>::new());
            }
        }
    }
    assert!(epochs.len() >= 3 && quick > 2_800, "{epochs:?}, {quick}");
}
