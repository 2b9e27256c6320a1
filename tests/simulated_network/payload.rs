//! Payloads over real endpoints on a bad network.

use std::io::Cursor;
use std::time::Duration;

use anabranch::payload::{PayloadError, Payloads, Received, Receiver, SendError, Sender, Sent};
use anabranch::{Address, Connection, Endpoint};
use anabranch_testkit::simulator::{Conditions, Host, Network};
use tokio::time::{sleep, timeout};

use crate::world::{FOREVER, endpoint_config, pattern, round_trip};

const PAYLOAD: &str = "/payload/1";
const LENGTH: usize = 3_000_000;

struct Two {
    network: Network,
    hosts: [Host; 2],
    server: Endpoint,
    client: Endpoint,
    address: Address,
}

impl Two {
    async fn new(seed: u64, conditions: Conditions) -> Self {
        let network = Network::new(seed);
        network.set_conditions(conditions);
        let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
        let builder = Endpoint::builder()
            .endpoint_config(endpoint_config())
            .sockets(hosts[0].clone())
            .protocol(PAYLOAD);
        let server = builder.bind("0.0.0.0:4001").await.unwrap();
        let client = Endpoint::builder()
            .endpoint_config(endpoint_config())
            .sockets(hosts[1].clone())
            .dial_only()
            .unwrap();
        let address = server.addresses().remove(0);
        Self {
            network,
            hosts,
            server,
            client,
            address,
        }
    }

    async fn connect(&self) -> (Connection, Connection) {
        let accepting = async { self.server.accept().await.unwrap().accept().await };
        let (ours, theirs) = tokio::join!(self.client.connect(&self.address), accepting);
        (ours.unwrap(), theirs.unwrap())
    }

    /// Closes everything and asserts that nothing is left of it.
    async fn finish(self, connections: Vec<(Connection, Connection)>) {
        let closing = async {
            for (ours, theirs) in connections {
                tokio::join!(ours.close(), theirs.close());
                assert!(ours.is_idle() && theirs.is_idle());
                assert_eq!(ours.stats().unread + theirs.stats().unread, 0);
            }
            tokio::join!(self.client.close(), self.server.close());
        };
        timeout(FOREVER, closing).await.expect("everything closes");
        assert!(self.server.is_idle() && self.client.is_idle());
        sleep(Duration::from_secs(5)).await;
        assert_eq!((self.network.in_flight(), self.network.sockets()), (0, 0));
    }
}

/// Sends one payload, and receives it after the part that `file` already has.
async fn transfer(
    (ours, theirs): &(Connection, Connection),
    receiver: &Receiver,
    file: &mut Vec<u8>,
) -> (Result<Sent, SendError>, Result<Received, PayloadError>) {
    let sending = async {
        let substream = ours.open(PAYLOAD).await.expect("the connection lives");
        let sender = Sender::new(substream, Default::default()).expect("the default is valid");
        sender.send_resumable(Cursor::new(pattern(LENGTH))).await
    };
    let receiving = async {
        let mut payloads = Payloads::new(theirs, PAYLOAD, receiver);
        let mut payload = payloads.accept().await.expect("the connection lives")?;
        let have = file.clone();
        let offset = payload.resume(have.len() as u64, &mut &have[..]).await?;
        file.truncate(offset as usize);
        payload.copy_to(file).await
    };
    let both = async { tokio::join!(sending, receiving) };
    timeout(FOREVER, both).await.expect("both come to an end")
}

#[tokio::test(start_paused = true)]
async fn a_payload_arrives_over_a_path_that_loses_and_reorders() {
    let mut conditions = round_trip(50);
    conditions.loss = 0.01;
    conditions.reorder = 0.02;
    conditions.duplicate = 0.01;
    let two = Two::new(21, conditions).await;
    let connections = two.connect().await;
    let receiver = Receiver::default();
    let mut file = Vec::new();
    let (sent, received) = transfer(&connections, &receiver, &mut file).await;
    assert!(file == pattern(LENGTH));
    assert_eq!(sent.unwrap().hash, received.unwrap().hash);
    assert!(two.network.counters().lost > 0);
    assert_eq!(receiver.open(), 0);
    two.finish(vec![connections]).await;
}

/// Row FR-10: both sides detect that the path is dead, received data is kept, and another
/// connection transfers exactly the rest.
#[tokio::test(start_paused = true)]
async fn fr10_a_payload_whose_path_dies_is_resumed_over_another_connection() {
    let mut conditions = round_trip(50);
    conditions.rate = Some(1_000_000);
    let two = Two::new(22, conditions).await;
    let first = two.connect().await;
    let receiver = Receiver::default();
    let mut file = Vec::new();
    let silence = async {
        sleep(Duration::from_secs(2)).await;
        two.network.set_silent(&two.hosts[1], true);
    };
    let ((sent, received), ()) = tokio::join!(transfer(&first, &receiver, &mut file), silence);
    assert!(matches!(sent, Err(SendError::Unconfirmed(_))), "{sent:?}");
    let Err(PayloadError::Truncated { got, want, cause }) = received else {
        panic!("{received:?}");
    };
    assert_eq!((got, want), (file.len() as u64, Some(LENGTH as u64)));
    assert!(cause.is_some());
    assert!(
        file.len() > 500_000 && file.len() < LENGTH,
        "{}",
        file.len()
    );
    assert!(file[..] == pattern(LENGTH)[..file.len()]);

    two.network.set_silent(&two.hosts[1], false);
    let second = two.connect().await;
    let (sent, received) = transfer(&second, &receiver, &mut file).await;
    assert!(file == pattern(LENGTH));
    assert_eq!(
        (sent.unwrap().resumed_from, received.unwrap().resumed_from),
        (got, got)
    );
    let rest = LENGTH as u64 - got;
    let bytes = second.0.stats().payload_sent;
    assert!((rest..rest + 500).contains(&bytes), "{bytes} of {rest}");
    assert_eq!(receiver.open(), 0);
    two.finish(vec![first, second]).await;
}
