//! Both protocols on one port, and the queues between them.

use std::net::SocketAddr;
use std::task::{Context, Waker};
use std::time::Duration;

use anabranch::udp::{Ecn, Received};
use tokio::time::timeout;

use super::*;
use crate::port::{Batch, Counts, Demultiplexer, OVERHEAD, Protocol, QUEUE, Queue};

const LIMIT: Duration = Duration::from_secs(120);

/// Waits until a port can be bound again: everything that held it is gone.
async fn is_free(address: SocketAddr) {
    let bound = async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, bound).await.expect("the port is closed");
}

/// Closes two nodes, and asserts that nothing of them is left.
async fn finish(nodes: [Node; 2]) -> [Counts; 2] {
    let [one, other] = nodes.map(|node| async move {
        let address = node.quic.local_addr().expect("an address");
        let (sorted, webrtc) = (Arc::clone(&node.port.sorted), node.webrtc.clone());
        node.close().await;
        assert!(webrtc.is_idle());
        drop(webrtc);
        is_free(address).await;
        assert_eq!(Arc::strong_count(&sorted), 1, "no task and no side is left");
        let left: u64 = [&sorted.webrtc, &sorted.quic]
            .into_iter()
            .flat_map(|queue| {
                queue
                    .lock()
                    .batches
                    .iter()
                    .map(Batch::datagrams)
                    .collect::<Vec<_>>()
            })
            .sum();
        let counts = sorted.counts();
        let dropped = counts.overflowed.iter().sum::<u64>() + counts.unclaimed;
        let delivered = counts.delivered.iter().sum::<u64>();
        assert_eq!(counts.received, delivered + dropped + left, "{counts:?}");
        counts
    });
    let ended = async { tokio::join!(one, other) };
    timeout(LIMIT, ended).await.expect("they close").into()
}

#[test]
fn the_first_byte_tells_the_protocols_apart() {
    for byte in 0..=255 {
        let expected = match byte {
            0..4 | 20..64 => Some(Protocol::WebRtc),
            4..20 | 128..192 => None,
            64..128 | 192..=255 => Some(Protocol::Quic),
        };
        assert_eq!(Protocol::of(&[byte, 200, 30]), expected, "{byte}");
    }
    assert_eq!(Protocol::of(&[]), None);
}

/// The datagrams that wait in a queue.
fn waiting(queue: &Queue) -> Vec<Vec<u8>> {
    let waiting = queue.lock();
    let batches = waiting.batches.iter();
    batches
        .flat_map(|batch| batch.contents.chunks(batch.stride).map(<[u8]>::to_vec))
        .collect()
}

#[test]
fn a_coalesced_receive_is_split_between_the_protocols_in_order() {
    let sorted = Demultiplexer::default();
    let source = ([192, 0, 2, 1], 4001).into();
    let contents = [20, 1, 1, 21, 2, 2, 64, 3, 3, 5, 4, 4, 22, 5, 5, 200, 6];
    let received = Received::new(source, &contents, 3).with_ecn(Ecn::Ce);
    sorted.sort(&received);
    assert_eq!(
        waiting(&sorted.webrtc),
        [[20, 1, 1], [21, 2, 2], [22, 5, 5]]
    );
    assert_eq!(waiting(&sorted.quic), [vec![64, 3, 3], vec![200, 6]]);
    let counts = sorted.counts();
    assert_eq!((counts.received, counts.unclaimed), (6, 1));
    for queue in [&sorted.webrtc, &sorted.quic] {
        let waiting = queue.lock();
        let same = |batch: &Batch| (batch.source, batch.ecn) == (source, Ecn::Ce);
        assert!(waiting.batches.iter().all(same));
    }
}

#[test]
fn a_full_queue_drops_what_comes_and_leaves_the_other_alone() {
    let sorted = Demultiplexer::default();
    let source = ([192, 0, 2, 1], 4001).into();
    // Tiny datagrams, which are bounded by what they cost and not by their bytes.
    let fit = (QUEUE / (OVERHEAD + 1)) as u64;
    for _ in 0..fit + 1000 {
        sorted.sort(&Received::new(source, &[20], 1));
    }
    assert_eq!(sorted.counts().overflowed, [1000, 0]);
    sorted.sort(&Received::new(source, &[64], 1));
    assert_eq!(sorted.counts().overflowed, [1000, 0]);
    assert_eq!(sorted.quic.lock().batches.len(), 1);
    // Room comes back with what is read.
    let mut cx = Context::from_waker(Waker::noop());
    while sorted.webrtc.poll_pop(&mut cx).is_ready() {}
    assert_eq!(sorted.counts().delivered, [fit, 0]);
    assert_eq!(sorted.webrtc.lock().bytes, 0);
    sorted.sort(&Received::new(source, &[20], 1));
    assert_eq!(sorted.webrtc.lock().batches.len(), 1);
}

/// Between two nodes with one port each, beside clients of either protocol that have a socket
/// of their own and the defaults, and datagrams of neither protocol.
#[tokio::test(flavor = "multi_thread")]
async fn all_bytes_arrive_on_both_protocols_under_load_at_once() {
    let [listener, dialler] = [Node::start().unwrap(), Node::start().unwrap()];
    let at = listener.quic.local_addr().unwrap();
    let (webrtc, quic) = connect(&dialler, &listener).await.unwrap();
    let from = dialler.quic.local_addr().unwrap();
    assert_eq!(webrtc.stats().path.map(|path| path.local), Some(from));

    let client = Endpoint::builder().dial_only().unwrap();
    let address = listener.webrtc.addresses().remove(0);
    let own_webrtc = client.connect(&address).await.unwrap();
    let mut own_client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    own_client.set_default_client_config(listener.client_config().unwrap());
    let own_quic = own_client.connect(at, "localhost").unwrap().await.unwrap();

    let noise = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for byte in [4, 16, 19, 128, 191] {
        noise.send_to(&[byte; 100], at).unwrap();
    }
    let loads = async {
        tokio::try_join!(
            load(&webrtc, &quic, 2 << 20),
            load(&own_webrtc, &own_quic, 1 << 20),
        )
    };
    timeout(LIMIT, loads).await.expect("in time").unwrap();
    let mtu = quic.stats().path.current_mtu;
    assert!(mtu > 1200, "QUIC has found out the path MTU: {mtu}");

    for connection in [&quic, &own_quic] {
        connection.close(0_u32.into(), b"");
    }
    for connection in [webrtc, own_webrtc] {
        connection.close().await;
    }
    own_client.wait_idle().await;
    client.close().await;
    assert!(client.is_idle());
    drop((quic, own_quic));
    let [listener, dialler] = finish([listener, dialler]).await;
    // Nothing of either protocol was taken for something else.
    assert_eq!((listener.unclaimed, dialler.unclaimed), (5, 0));
    let both = |counts: Counts| counts.delivered.iter().all(|delivered| *delivered > 100);
    assert!(both(listener) && both(dialler), "{listener:?} {dialler:?}");
}

/// A node that closes one protocol goes on with the other.
#[tokio::test]
async fn either_protocol_outlives_the_other() {
    let nodes = [Node::start().unwrap(), Node::start().unwrap()];
    let (webrtc, quic) = connect(&nodes[1], &nodes[0]).await.unwrap();
    quic.close(0_u32.into(), b"");
    for node in &nodes {
        node.quic.close(0_u32.into(), b"");
        node.quic.wait_idle().await;
    }
    let (read, write) = webrtc.open(PROTOCOL).await.unwrap().into_split();
    let exchanged = timeout(LIMIT, exchange(write, read, content(0, 1 << 20))).await;
    exchanged.expect("in time").unwrap();
    webrtc.close().await;
    drop(quic);
    finish(nodes).await;

    let nodes = [Node::start().unwrap(), Node::start().unwrap()];
    let (webrtc, quic) = connect(&nodes[1], &nodes[0]).await.unwrap();
    webrtc.close().await;
    for node in &nodes {
        node.webrtc.close().await;
    }
    let (write, read) = quic.open_bi().await.unwrap();
    let exchanged = timeout(LIMIT, exchange(write, read, content(0, 1 << 20))).await;
    exchanged.expect("in time").unwrap();
    drop(quic);
    finish(nodes).await;
}
