//! The changes of an endpoint's addresses.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch::Endpoint;
use anabranch::address::PeerAddress;
use anabranch::endpoint::{AddressChanges, AddressEvent, WebSocketOptions};
use anabranch::udp::{DatagramSocket, Sockets, SystemSockets};
use tokio::time::{Instant, timeout};

use super::{LOOPBACK, endpoint, listen};

async fn next(changes: &mut AddressChanges) -> AddressEvent {
    let event = timeout(Duration::from_secs(60), changes.next()).await;
    event.expect("in time").expect("the endpoint is open")
}

#[tokio::test]
async fn listeners_of_both_carriers_are_reported_as_they_come_and_go() {
    let endpoint = endpoint();
    let (first, address) = listen(&endpoint);
    let first_address = PeerAddress::from(address);
    let mut changes = endpoint.address_changes();
    let begun = Instant::now();
    // What was there before.
    let added = AddressEvent::Added(first_address.clone());
    assert_eq!(next(&mut changes).await, added);
    let listening = tokio::spawn({
        let endpoint = endpoint.clone();
        async move {
            let socket = LOOPBACK.parse().expect("an address");
            let options = WebSocketOptions::default();
            endpoint.listen_websocket(socket, options).expect("a port")
        }
    });
    let AddressEvent::Added(PeerAddress::WebSocket(second)) = next(&mut changes).await else {
        panic!("no WebSocket");
    };
    let second = PeerAddress::from(second);
    first.close();
    assert_eq!(
        next(&mut changes).await,
        AddressEvent::Expired(first_address)
    );
    listening.await.expect("no panic").close();
    assert_eq!(next(&mut changes).await, AddressEvent::Expired(second));
    // At once, not with the next look at the interfaces.
    assert!(begun.elapsed() < Duration::from_secs(4));
    endpoint.close().await;
    assert_eq!(changes.next().await, None);
    assert!(endpoint.is_idle());
}

#[tokio::test]
async fn the_end_of_the_endpoint_expires_every_address() {
    let endpoint = endpoint();
    let (_, address) = listen(&endpoint);
    let mut changes = endpoint.address_changes();
    let address = PeerAddress::from(address);
    assert_eq!(
        next(&mut changes).await,
        AddressEvent::Added(address.clone())
    );
    let waiting = tokio::spawn(async move { (changes.next().await, changes.next().await) });
    endpoint.close().await;
    let expired = AddressEvent::Expired(address);
    assert_eq!(waiting.await.expect("no panic"), (Some(expired), None));

    let dropped = super::endpoint();
    let mut changes = dropped.address_changes();
    drop(dropped);
    assert_eq!(changes.next().await, None, "it does not hold the endpoint");
}

/// Sockets of the system on a machine whose interfaces change.
#[derive(Debug, Clone)]
struct Changing(Arc<Mutex<Vec<IpAddr>>>);

impl Sockets for Changing {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        SystemSockets::new().bind(address)
    }

    fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr> {
        let ips = self.0.lock().expect("no panic").clone();
        let ips = ips.into_iter();
        ips.map(|ip| SocketAddr::new(ip, socket.port())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_vanishes_and_another_that_appears_are_reported() {
    let ips = |last: &[u8]| -> Vec<IpAddr> {
        let ips = last.iter().map(|last| IpAddr::from([192, 0, 2, *last]));
        ips.collect()
    };
    let interfaces = Arc::new(Mutex::new(ips(&[1, 2])));
    let endpoint = Endpoint::builder()
        .sockets(Changing(Arc::clone(&interfaces)))
        .bind_now(&["0.0.0.0:0".parse().expect("an address")])
        .expect("a port");
    let mut changes = endpoint.address_changes();
    let ip = |event: &AddressEvent| match event {
        AddressEvent::Added(PeerAddress::WebRtcDirect(address)) => {
            (true, address.socket_addr().ip())
        }
        AddressEvent::Expired(PeerAddress::WebRtcDirect(address)) => {
            (false, address.socket_addr().ip())
        }
        other => panic!("{other:?}"),
    };
    let [one, two, three]: [IpAddr; 3] = ips(&[1, 2, 3]).try_into().expect("three");
    assert_eq!(ip(&next(&mut changes).await), (true, one));
    assert_eq!(ip(&next(&mut changes).await), (true, two));
    assert!(
        timeout(Duration::from_secs(60), changes.next())
            .await
            .is_err(),
        "nothing has changed"
    );
    *interfaces.lock().expect("no panic") = ips(&[2, 3]);
    let begun = Instant::now();
    assert_eq!(ip(&next(&mut changes).await), (false, one));
    assert!(begun.elapsed() <= Duration::from_secs(5));
    assert_eq!(ip(&next(&mut changes).await), (true, three));
    drop(endpoint);
    assert_eq!(ip(&changes.next().await.expect("an event")), (false, two));
    assert_eq!(ip(&changes.next().await.expect("an event")), (false, three));
    assert_eq!(changes.next().await, None);
}
