//! Throughput of the engines in memory, printed by `cargo test --release -p anabranch-str0m
//! throughput -- --ignored --nocapture`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anabranch_rtc::{ChannelId, Datagram, DirectEngine, Engine, Event, TransmitQueue, Written};
use anabranch_str0m::Str0mEngine;

use super::harness::{Make, Options, Pair};

fn forward(
    now: Instant,
    queue: &mut TransmitQueue,
    to: &mut dyn Engine,
    [from, at]: [SocketAddr; 2],
    back: &mut TransmitQueue,
) {
    while let Some(run) = queue.front(1) {
        let datagram = Datagram::new(from, at, run.contents).with_ecn(run.ecn);
        to.handle_datagram(now, datagram, back);
        queue.pop(1);
    }
    to.poll(now, back);
}

/// MB/s on one thread for both sides, with `window` unacknowledged bytes on one of `channels`.
fn measure<E: Make>(window: usize, channels: usize) -> f64 {
    let mut pair = Pair::<E, E>::connected(Options::default());
    let mut ours = ChannelId::new(0);
    for _ in 0..channels {
        (ours, _) = pair.open("");
    }
    pair.run(Duration::from_secs(1));
    let message = vec![7; 16_384];
    let (mut up, mut down) = (TransmitQueue::default(), TransmitQueue::default());
    let (client, server) = (&mut pair.client, &mut pair.server);
    let (began, mut received) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        let now = pair.now + began.elapsed();
        while client.engine.unacknowledged() + message.len() <= window
            && client.engine.write(ours, &message) == Written::Taken
        {}
        client.engine.poll(now, &mut up);
        forward(
            now,
            &mut up,
            &mut server.engine,
            [client.address, server.address],
            &mut down,
        );
        while let Some(event) = server.engine.next_event() {
            if let Event::Readable { channel } = event {
                while let Some(bytes) = server.engine.read(channel) {
                    received += bytes.len();
                }
            }
        }
        forward(
            now,
            &mut down,
            &mut client.engine,
            [server.address, client.address],
            &mut up,
        );
        while client.engine.next_event().is_some() {}
        client.engine.handle_timeout(now);
        server.engine.handle_timeout(now);
    }
    received as f64 / 1e6 / began.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    for (window, channels) in [
        (128 << 10, 1),
        (1 << 20, 1),
        (4 << 20, 1),
        (128 << 10, 1000),
    ] {
        println!(
            "{:>4} KiB, {channels:>4} channels: direct {:>6.1} MB/s, str0m {:>6.1} MB/s",
            window >> 10,
            measure::<DirectEngine>(window, channels),
            measure::<Str0mEngine>(window, channels),
        );
    }
}
