//! Connections that come and go for a day of virtual time, on a simulated network.
//!
//! `ANABRANCH_CHURN_HOURS` says how long instead.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anabranch_libp2p::{Config, Connection, Stream, Transport};
use anabranch_testkit::simulator::{Conditions, Host, Network};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p_core::connection::Endpoint;
use libp2p_core::multiaddr::Multiaddr;
use libp2p_core::muxing::StreamMuxerExt;
use libp2p_core::transport::{DialOpts, ListenerId, PortUse, Transport as _, TransportEvent};
use libp2p_identity::Keypair;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

const HOURS: u64 = 24;

/// Hosts that dial.
const DIALLERS: u8 = 8;

/// Longer than any timeout of a connection whose peer has gone without a word.
const SETTLE: Duration = Duration::from_secs(120);

fn transport(host: Host) -> Transport {
    let keypair = Keypair::generate_ed25519();
    let config = Config::new(&keypair).expect("an Ed25519 key");
    Transport::with_config(config.with_sockets(host))
}

/// What has happened, on both sides.
#[derive(Debug, Default)]
struct Count {
    dialled: AtomicUsize,
    accepted: AtomicUsize,
    /// Connections that were accepted and live.
    live: AtomicUsize,
    echoes: AtomicUsize,
}

fn add(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::Relaxed);
}

async fn echo(stream: Stream) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    futures::io::copy(read, &mut write).await?;
    write.close().await
}

async fn serve(mut connection: Connection) {
    while let Ok(stream) = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await {
        // It ends with the peer, whose fault that is.
        tokio::spawn(echo(stream));
    }
}

async fn listen(mut transport: Transport, count: Arc<Count>) {
    loop {
        let event = poll_fn(|cx| Pin::new(&mut transport).poll(cx)).await;
        let TransportEvent::Incoming { upgrade, .. } = event else {
            continue;
        };
        let count = Arc::clone(&count);
        tokio::spawn(async move {
            // A dialler may give up, or go.
            if let Ok((_, connection)) = upgrade.await {
                add(&count.accepted);
                add(&count.live);
                serve(connection).await;
                count.live.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
}

/// One connection, with substreams of which each is echoed.
async fn visit(transport: &mut Transport, address: &Multiaddr, turn: u64, count: &Count) {
    let opts = DialOpts {
        role: Endpoint::Dialer,
        port_use: match turn % 2 {
            0 => PortUse::Reuse,
            _ => PortUse::New,
        },
    };
    let dial = transport
        .dial(address.clone(), opts)
        .expect("an address of ours");
    if turn % 11 == 10 {
        // Half-way, a swarm that has another connection gives up.
        let _ = timeout(Duration::from_millis(turn % 200), dial).await;
        return;
    }
    let (_, mut connection) = dial.await.expect("it listens");
    add(&count.dialled);
    for length in (0..turn % 4).map(|n| (n * 10_000) as usize) {
        let opened = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await;
        let mut stream = opened.expect("it lives");
        let sent = vec![length as u8; length];
        stream.write_all(&sent).await.expect("it reads");
        stream.close().await.expect("it has it");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.expect("all comes back");
        assert!(got == sent);
        add(&count.echoes);
    }
    // Minutes without a word, by now and then.
    sleep(Duration::from_secs(turn * turn % 400)).await;
    match turn % 3 {
        0 => poll_fn(|cx| connection.poll_close_unpin(cx))
            .await
            .expect("a close never fails"),
        1 => drop(connection),
        _ => {
            // With a substream that is in use.
            let opened = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await;
            let mut stream = opened.expect("it lives");
            stream.write_all(b"bye").await.expect("it reads");
            drop(connection);
            drop(stream);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_after_a_day_of_connections_that_come_and_go() {
    let hours = std::env::var("ANABRANCH_CHURN_HOURS");
    let hours = hours.map_or(HOURS, |hours| hours.parse().expect("a number"));
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let network = Network::new(16);
    network.set_conditions(Conditions {
        loss: 0.005,
        ..Conditions::round_trip(Duration::from_millis(50))
    });
    let count = Arc::new(Count::default());
    let begun = Instant::now();

    let mut listener = transport(network.host([10, 0, 0, 1]));
    let any = "/ip4/10.0.0.1/udp/4001/webrtc-direct";
    let any = any.parse().expect("an address");
    listener
        .listen_on(ListenerId::next(), any)
        .expect("a free port");
    let event = poll_fn(|cx| Pin::new(&mut listener).poll(cx)).await;
    let address = event.into_new_address().expect("a new address");
    let listening = tokio::spawn(listen(listener, Arc::clone(&count)));
    sleep(Duration::from_secs(1)).await;
    let (tasks_before, sockets_before) = (tasks(), network.sockets());

    let end = begun + Duration::from_secs(hours * 3600);
    let mut diallers = Vec::new();
    for n in 0..DIALLERS {
        let (network, address) = (network.clone(), address.clone());
        let count = Arc::clone(&count);
        diallers.push(tokio::spawn(async move {
            let host = network.host([10, 0, 1, n]);
            let mut transport = transport(host.clone());
            let any = format!("/ip4/10.0.1.{n}/udp/4001/webrtc-direct");
            let any = any.parse().expect("an address");
            transport
                .listen_on(ListenerId::next(), any)
                .expect("a free port");
            let mut turn = u64::from(n);
            while Instant::now() < end {
                visit(&mut transport, &address, turn, &count).await;
                if turn % 40 == 39 {
                    // It goes without a word, and comes back when nobody expects it any more.
                    let dial = DialOpts {
                        role: Endpoint::Dialer,
                        port_use: PortUse::New,
                    };
                    let dial = transport.dial(address.clone(), dial);
                    let kept = dial.expect("an address of ours").await.expect("it listens");
                    add(&count.dialled);
                    network.set_silent(&host, true);
                    drop(kept);
                    sleep(SETTLE).await;
                    network.set_silent(&host, false);
                }
                turn += 1;
            }
        }));
    }
    for dialler in diallers {
        dialler.await.expect("no panic");
    }
    sleep(SETTLE).await;
    println!("{count:?} in {:?} of virtual time", begun.elapsed());
    assert_eq!(count.live.load(Ordering::Relaxed), 0, "{count:?}");
    assert_eq!(network.sockets(), sockets_before);
    assert_eq!(tasks(), tasks_before);
    let (dialled, accepted) = (&count.dialled, &count.accepted);
    let dialled = dialled.load(Ordering::Relaxed);
    assert!(dialled as u64 > hours * 20, "{count:?}");
    assert!(accepted.load(Ordering::Relaxed) >= dialled, "{count:?}");
    listening.abort();
    sleep(SETTLE).await;
    assert_eq!((network.sockets(), tasks()), (0, 0));
}
