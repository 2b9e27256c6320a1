//! Connections whose ClientHello arrives in fragments, as from browsers, on both engines, with DTLS
//! 1.2 and 1.3, on a simulated network.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use anabranch::certificate::Certificate;
use anabranch::endpoint::{Endpoint, EndpointConfig, EngineFactory};
use anabranch::identity::Identity;
use anabranch::substream::Finished;
use anabranch_rtc::dtls::forced;
use anabranch_str0m::STR0M;
use anabranch_testkit::simulator::{Conditions, Network, Verdict};

const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;

/// Distance between the record numbers of the dialler, which leaves room for those of the
/// fragments.
const NUMBERS_APART: u64 = 16;

/// MTU of the listener and of the dialler. `forced::set_12` selects by its MTU the side that
/// supports only DTLS 1.2.
const MTUS: [usize; 2] = [1200, 1180];

static CREDENTIALS: LazyLock<[(Identity, Certificate); 2]> = LazyLock::new(|| {
    [1, 2].map(|seed| {
        let identity = Identity::from_ed25519_seed([seed; 32]);
        let certificate = Certificate::derive(&identity);
        (identity, certificate)
    })
});

/// A part of a ClientHello, as fractions of its length.
type Part = (f64, f64);

/// Fragments with forged contents, which arrive before everything else.
type Forged = &'static [Part];

/// What arrives of each transmission of the ClientHello: datagrams of one or more fragments. The
/// last one also stands for all later transmissions.
type Attempts = &'static [&'static [&'static [Part]]];

/// Where Firefox splits its ClientHello of 1 461 bytes: at 1 383, and after three losses at 1 163.
const FIRST_CUT: f64 = 1383.0 / 1461.0;
const SECOND_CUT: f64 = 1163.0 / 1461.0;

/// A ClientHello in one fragment.
struct Hello {
    /// The record header, without the length.
    header: [u8; RECORD_HEADER - 2],
    message_sequence: [u8; 2],
    body: Vec<u8>,
}

impl Hello {
    fn parse(datagram: &[u8]) -> Option<Self> {
        let record = datagram.get(RECORD_HEADER..)?;
        let is_hello = datagram.first() == Some(&22)
            && datagram.get(3..5) == Some(&[0, 0])
            && record.first() == Some(&1);
        let u24 = |at: usize| -> Option<usize> {
            let [a, b, c] = record.get(at..at + 3)?.try_into().ok()?;
            Some(u32::from_be_bytes([0, a, b, c]) as usize)
        };
        if !is_hello {
            return None;
        }
        assert_eq!((u24(6)?, u24(9)?), (0, u24(1)?), "a fragmented ClientHello");
        assert_eq!(
            record.len(),
            HANDSHAKE_HEADER + u24(1)?,
            "more than a ClientHello"
        );
        Some(Self {
            header: *datagram.first_chunk()?,
            message_sequence: record.get(4..6)?.try_into().ok()?,
            body: record.get(HANDSHAKE_HEADER..)?.to_vec(),
        })
    }

    /// A record with a part of the message as a fragment (RFC 6347 section 4.2.3).
    fn part(&self, (from, to): Part, number: usize) -> Vec<u8> {
        let at = |fraction: f64| (fraction * self.body.len() as f64) as usize;
        let (from, to) = (at(from), at(to));
        let u24 = |number: usize| u32::try_from(number).expect("short").to_be_bytes();
        let mut record = self.header.to_vec();
        record[RECORD_HEADER - 3] += u8::try_from(number).expect("few");
        let length = u16::try_from(HANDSHAKE_HEADER + to - from).expect("short");
        record.extend(length.to_be_bytes());
        record.push(1);
        record.extend_from_slice(&u24(self.body.len())[1..]);
        record.extend_from_slice(&self.message_sequence);
        record.extend_from_slice(&u24(from)[1..]);
        record.extend_from_slice(&u24(to - from)[1..]);
        record.extend_from_slice(&self.body[from..to]);
        record
    }
}

/// Multiplies the numbers of the plaintext records in a datagram by [`NUMBERS_APART`].
fn spread_numbers(mut rest: &mut [u8]) {
    while rest.len() >= RECORD_HEADER && matches!(rest[0], 20..=22) {
        let number = u64::from_be_bytes(rest[3..11].try_into().expect("eight"));
        // Epoch 0: records of later epochs are authenticated.
        if number >> 48 == 0 {
            rest[3..11].copy_from_slice(&(number * NUMBERS_APART).to_be_bytes());
        }
        let length = RECORD_HEADER + usize::from(u16::from_be_bytes([rest[11], rest[12]]));
        if length >= rest.len() {
            return;
        }
        rest = &mut rest[length..];
    }
}

/// Connects while the network fragments every ClientHello, and transfers data.
async fn connect_fragmented(
    engine: EngineFactory,
    only_12: Option<usize>,
    forged: Forged,
    attempts: Attempts,
) {
    forced::set_12(only_12.map_or(usize::MAX, |side| MTUS[side]));
    let network = Network::new(3);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(40)));
    let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
    let builder = |side: usize| {
        let mut config = EndpointConfig::default();
        config.engine = engine;
        config.mtu = MTUS[side];
        let (identity, certificate) = CREDENTIALS[side].clone();
        Endpoint::builder()
            .identity(identity)
            .certificate(certificate)
            .endpoint_config(config)
            .sockets(hosts[side].clone())
            .protocol("/echo/1")
    };
    let server = builder(0).bind("10.0.0.1:4001").await.expect("a socket");
    let client = builder(1).dial_only().expect("an endpoint");

    let hellos = Arc::new(AtomicUsize::new(0));
    let unified = Arc::new(AtomicUsize::new(0));
    let (injecting, seen) = (network.clone(), Arc::clone(&hellos));
    let seen_unified = Arc::clone(&unified);
    let listener = server.addresses()[0].socket_addr();
    network.set_tap(move |datagram| {
        // The unified header of DTLS 1.3 (RFC 9147 section 4).
        if matches!(datagram.contents.first(), Some(32..=63)) {
            seen_unified.fetch_add(1, Ordering::Relaxed);
        }
        if datagram.destination != listener {
            return Verdict::Pass;
        }
        spread_numbers(&mut datagram.contents);
        let Some(hello) = Hello::parse(&datagram.contents) else {
            return Verdict::Pass;
        };
        let attempt = seen.fetch_add(1, Ordering::Relaxed);
        let datagrams = attempts.get(attempt).or_else(|| attempts.last());
        let mut number = 0;
        for part in forged.iter().filter(|_| attempt == 0) {
            let mut contents = hello.part(*part, number);
            number += 1;
            for byte in &mut contents[RECORD_HEADER + HANDSHAKE_HEADER..] {
                *byte ^= 0x55;
            }
            injecting.inject(datagram.source, datagram.destination, contents);
        }
        for parts in *datagrams.expect("an attempt") {
            let mut contents = Vec::new();
            for part in *parts {
                contents.extend(hello.part(*part, number));
                number += 1;
            }
            injecting.inject(datagram.source, datagram.destination, contents);
        }
        Verdict::Drop
    });

    let serving = tokio::spawn({
        let server = server.clone();
        async move {
            let incoming = server.accept().await.expect("a first contact");
            let connection = incoming.accept().await.expect("a connection");
            let mut substream = connection.accept().await.expect("no error").expect("open");
            let mut all = Vec::new();
            substream.read_to_end(&mut all).await.expect("all");
            substream.write_all(&all).await.expect("room");
            substream.finish().await.expect("an end");
            connection
        }
    });
    let start = Instant::now();
    let address = server.addresses().remove(0);
    let context = format!("{engine:?}, 1.2 only: {only_12:?}, {attempts:?}");
    let ours = match client.connect(&address).await {
        Ok(ours) => ours,
        Err(error) => panic!("{error} with {context}"),
    };
    println!("{context}: connected after {:?}", start.elapsed());
    assert!(
        hellos.load(Ordering::Relaxed) >= attempts.len(),
        "{context}"
    );
    let is_13 = unified.load(Ordering::Relaxed) > 0;
    assert_eq!(is_13, only_12.is_none(), "{context}");
    let mut substream = ours.open("/echo/1").await.expect("a substream");
    substream.write_all(&[7; 5000]).await.expect("room");
    let outcome = substream.finish().await.expect("an end");
    assert_eq!(outcome, Finished::Acked);
    let mut all = Vec::new();
    substream.read_to_end(&mut all).await.expect("all");
    assert_eq!(all, [7; 5000]);
    drop(substream);
    let theirs = serving.await.expect("no panic");

    // Nothing is left.
    timeout(Duration::from_secs(60), async {
        ours.close().await;
        theirs.close().await;
        client.close().await;
        server.close().await;
    })
    .await
    .expect("everything closes");
    assert!(ours.is_idle() && theirs.is_idle() && client.is_idle() && server.is_idle());
    drop((ours, theirs, client, server));
    sleep(Duration::from_secs(60)).await;
    assert_eq!((network.sockets(), network.in_flight()), (0, 0));
    forced::set_12(usize::MAX);
}

/// On both engines: with DTLS 1.3, and with a listener or a dialler that supports only DTLS 1.2.
async fn connects(attempts: Attempts) {
    connects_beside(&[], attempts).await;
}

/// The same with forged fragments that arrive first, from the address of the dialler.
async fn connects_beside(forged: Forged, attempts: Attempts) {
    for engine in [EngineFactory::DIRECT, STR0M] {
        for only_12 in [None, Some(0), Some(1)] {
            connect_fragmented(engine, only_12, forged, attempts).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_part_before_a_hello_does_not_prevail() {
    const TWO: Attempts = &[&[&[(0.0, FIRST_CUT)], &[(FIRST_CUT, 1.0)]]];
    for forged in [&[(FIRST_CUT, 1.0)], &[(0.0, FIRST_CUT)], &[(0.5, 0.6)]] {
        connects_beside(forged, TWO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_in_two_datagrams_connects() {
    connects(&[&[&[(0.0, FIRST_CUT)], &[(FIRST_CUT, 1.0)]]]).await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_whose_parts_come_in_reverse_order_connects() {
    connects(&[&[&[(FIRST_CUT, 1.0)], &[(0.0, FIRST_CUT)]]]).await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_firefox_splits_anew_because_large_datagrams_are_lost_connects() {
    connects(&[
        &[&[(FIRST_CUT, 1.0)]],
        &[&[(FIRST_CUT, 1.0)]],
        &[&[(FIRST_CUT, 1.0)]],
        &[&[(0.0, SECOND_CUT)], &[(SECOND_CUT, 1.0)]],
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_is_split_anew_and_loses_its_other_half_connects() {
    // The tail of one split overlaps the head of the other, and completes it.
    connects(&[&[&[(SECOND_CUT, 1.0)]], &[&[(0.0, FIRST_CUT)]]]).await;
    connects(&[&[&[(0.0, FIRST_CUT)]], &[&[(SECOND_CUT, 1.0)]]]).await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_loses_a_part_in_the_middle_connects_when_it_is_sent_again() {
    connects(&[
        &[&[(0.0, 0.3)], &[(0.6, 1.0)]],
        &[&[(0.0, 0.5)]],
        &[&[(0.5, 0.7)]],
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_whose_parts_come_twice_connects() {
    connects(&[&[
        &[(FIRST_CUT, 1.0)],
        &[(FIRST_CUT, 1.0)],
        &[(0.0, FIRST_CUT)],
        &[(0.0, FIRST_CUT)],
        &[(FIRST_CUT, 1.0)],
        &[(0.0, SECOND_CUT)],
    ]])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_in_many_overlapping_parts_from_its_end_connects() {
    connects(&[&[
        &[(0.8, 1.0)],
        &[(0.7, 0.9)],
        &[(0.4, 0.7), (0.1, 0.3)],
        &[(0.25, 0.45)],
        &[(0.0, 0.2), (0.0, 0.6)],
    ]])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_in_two_records_of_one_datagram_connects() {
    connects(&[&[&[(0.0, SECOND_CUT), (SECOND_CUT, 1.0)]]]).await;
}
