//! What one side sends at one time shares a datagram, on a simulated path of 20 ms.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch::{Connection, Endpoint, Substream};
use anabranch_testkit::simulator::{Conditions, Network, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PROTOCOL: &str = "/echo/1.0.0";

/// Sends 1 KiB on a new substream and reads it back.
async fn echo(connection: &Connection) {
    let mut substream = connection.open(PROTOCOL).await.expect("it is spoken");
    substream.write_all(&[7; 1024]).await.expect("room");
    substream.shutdown().await.expect("the peer has it");
    let mut back = Vec::new();
    substream.read_to_end(&mut back).await.expect("all came");
    assert_eq!(back, [7; 1024]);
    substream.finish().await.expect("acknowledged");
}

async fn answer(mut substream: Substream) {
    let mut request = Vec::new();
    substream.read_to_end(&mut request).await.expect("all came");
    substream.write_all(&request).await.expect("room");
    substream.finish().await.expect("acknowledged");
}

/// DTLS records of application data, by the first byte of a datagram (RFC 9147 section 4).
fn is_record(contents: &[u8]) -> bool {
    matches!(contents.first(), Some(0x20..=0x3f | 23))
}

/// DCEP's answer, the acknowledgement and the credit are one datagram; each was one of its own, and
/// an echo took 12 datagrams, with the four messages of multistream-select.
#[tokio::test(start_paused = true)]
async fn an_echo_on_a_new_substream_takes_5_datagrams() {
    let network = Network::new(1);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(20)));
    let [server, client] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| network.host(ip));
    let listener = Endpoint::builder()
        .sockets(server.clone())
        .protocol(PROTOCOL)
        .bind("0.0.0.0:4001")
        .await
        .expect("a socket");
    let dialler = Endpoint::builder()
        .sockets(client.clone())
        .dial_only()
        .expect("defaults work");
    let accepting = tokio::spawn({
        let listener = listener.clone();
        async move {
            let incoming = listener.accept().await.expect("it is open");
            let connection = incoming.accept().await.expect("the dialler is honest");
            while let Ok(Some(substream)) = connection.accept().await {
                tokio::spawn(answer(substream));
            }
        }
    });
    let address = listener.addresses().remove(0);
    let connection = dialler.connect(&address).await.expect("a listener");
    // The handshake traffic is over.
    echo(&connection).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let records = Arc::new(AtomicU64::new(0));
    network.set_tap({
        let records = Arc::clone(&records);
        move |datagram| {
            records.fetch_add(is_record(&datagram.contents).into(), Ordering::Relaxed);
            Verdict::Pass
        }
    });
    for _ in 0..100 {
        echo(&connection).await;
    }
    let records = records.load(Ordering::Relaxed);
    println!("{records} records for 100 echoes");
    assert!((450..=550).contains(&records), "{records}");

    connection.close().await;
    assert!(connection.is_idle());
    accepting.await.expect("no panic");
    dialler.close().await;
    listener.close().await;
    assert!(dialler.is_idle() && listener.is_idle());
}
