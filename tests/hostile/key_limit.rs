//! The key usage limit of DTLS 1.2, on both engines, on a simulated network.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use anabranch::ConnectionError;
use anabranch::certificate::Certificate;
use anabranch::endpoint::{Endpoint, EndpointConfig, EngineFactory};
use anabranch::identity::Identity;
use anabranch_rtc::dtls::forced;
use anabranch_str0m::STR0M;
use anabranch_testkit::simulator::{Conditions, Network};

/// MTU of the dialler, which may be forced to DTLS 1.2, and of the listener.
const MTUS: [usize; 2] = [1180, 1200];

/// The key usage limit of the limited side, in records.
const LIMIT: u64 = 300;

/// Sends messages of one byte from the dialler until the limit is reached. `limited` is the side
/// with the limit: 0, the dialler, which sends, or 1, the listener, which receives.
async fn reach_limit(engine: EngineFactory, limited: usize, version_12: bool) {
    let context = format!("{engine:?}, side {limited}, DTLS 1.2: {version_12}");
    forced::set_12(if version_12 { MTUS[0] } else { usize::MAX });
    let network = Network::new(5);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(10)));
    let builder = |side: usize| {
        let mut config = {
            let mut config = EndpointConfig::default();
            config.engine = engine;
            config.mtu = MTUS[side];
            config
        };
        if side == limited {
            config.max_dtls12_records = LIMIT;
        }
        let identity = Identity::from_ed25519_seed([side as u8 + 1; 32]);
        Endpoint::builder()
            .certificate(Certificate::derive(&identity))
            .identity(identity)
            .endpoint_config(config)
            .sockets(network.host([10, 0, 0, side as u8 + 1]))
            .protocol("/tiny/1")
    };
    let dialler = builder(0).dial_only().expect("an endpoint");
    let listener = builder(1).bind("10.0.0.2:4001").await.expect("a socket");
    let address = listener.addresses().remove(0);
    let (ours, theirs) = tokio::join!(dialler.connect(&address), async {
        let incoming = listener.accept().await.expect("a first contact");
        incoming.accept().await.expect("a connection")
    });
    let ours = ours.expect("a connection");
    let reading = tokio::spawn({
        let theirs = theirs.clone();
        async move {
            let mut substream = theirs.accept().await.expect("no error").expect("open");
            let mut all = Vec::new();
            let _ = substream.read_to_end(&mut all).await;
            all.len() as u64
        }
    });
    let mut substream = ours.open("/tiny/1").await.expect("a substream");
    let mut written = 0;
    while written < 3 * LIMIT && substream.write_all(b"x").await.is_ok() {
        written += 1;
        sleep(Duration::from_millis(2)).await;
    }
    if version_12 {
        println!("{context}: {written}");
        // Each message is a record. The receiver sends half as many records, for its SACKs.
        assert!(written < LIMIT * 5 / 4, "{context}: {written}");
        let causes = [ours.closed().await, theirs.closed().await];
        assert_eq!(causes[limited], ConnectionError::KeysUsedUp, "{context}");
        let reported = causes[1 - limited].to_string();
        // str0m may close on DTLS's close_notify before it delivers the cause.
        let has_cause = reported.contains(&causes[limited].to_string());
        assert!(has_cause || engine == STR0M, "{context}: {reported}");
        drop(substream);
        let read = reading.await.expect("no panic");
        // The close is orderly: all data that the closing side accepted has arrived.
        assert!(
            read == written || limited == 1,
            "{context}: {read} of {written}"
        );
    } else {
        substream
            .finish()
            .await
            .expect("DTLS 1.3 has no such limit");
        drop(substream);
        assert_eq!(reading.await.expect("no panic"), 3 * LIMIT, "{context}");
    }
    let closing = async {
        ours.close().await;
        theirs.close().await;
        dialler.close().await;
        listener.close().await;
    };
    timeout(Duration::from_secs(60), closing)
        .await
        .expect("everything closes");
    assert!(ours.is_idle() && theirs.is_idle() && dialler.is_idle() && listener.is_idle());
    drop((ours, theirs, dialler, listener));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(
        (network.sockets(), network.in_flight()),
        (0, 0),
        "{context}"
    );
    forced::set_12(usize::MAX);
}

#[tokio::test(start_paused = true)]
async fn tiny_messages_use_up_the_keys_of_dtls_1_2_of_who_sends_and_of_who_receives() {
    for engine in [EngineFactory::DIRECT, STR0M] {
        for limited in [0, 1] {
            reach_limit(engine, limited, true).await;
        }
        reach_limit(engine, 0, false).await;
    }
}
