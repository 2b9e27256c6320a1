//! Detects by ICMP errors that nobody listens at a UDP port.
//!
//! A host without a listener answers with an ICMP error, which the system reports only to a
//! connected socket. The socket of a dial is not connected: it has to move between source
//! addresses, it could not distinguish these errors from those of its own sends, and on Linux an
//! error makes the readiness of a socket useless for good. So a dial that is not answered has a
//! second, connected socket until anything arrives from the peer. It sends STUN indications, which
//! are keepalives that no agent answers (RFC 8445 section 11).
//!
//! An off-path attacker does not know the port of that socket, and the system compares addresses
//! and ports with those in the ICMP error. An on-path attacker can abort a dial in other ways too.
//! Still, one error is not enough, since a listener may be restarting: it takes [`REFUSALS`]
//! errors, and 400 ms.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::sleep;

use super::socket::wildcard;

/// Number of ICMP errors that ends a dial.
const REFUSALS: u32 = 3;

/// Delay of the first datagram: a listener within a round trip of 50 ms never sees one.
const FIRST: Duration = Duration::from_millis(50);

/// Interval of the first datagrams, and how long each waits for an error. Linux sends six errors to
/// one host at once and then one per second, and the checks of ICE count as well.
const INTERVAL: Duration = Duration::from_millis(200);

/// Datagrams before the interval begins to double.
const QUICK: u32 = 4;

/// Completes with the last of [`REFUSALS`] errors, and never without them.
pub(super) async fn watch(remote: SocketAddr) -> io::Error {
    match refusals(remote).await {
        Ok(refused) => refused,
        Err(error) => {
            // The dial has its own time limit.
            tracing::debug!(target: "anabranch::endpoint", %remote, %error, "no port watch");
            std::future::pending().await
        }
    }
}

async fn refusals(remote: SocketAddr) -> io::Result<io::Error> {
    sleep(FIRST).await;
    let socket = UdpSocket::bind((wildcard(remote), 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(remote)?;
    let mut interval = INTERVAL;
    let (mut sent, mut refusals) = (0, 0);
    loop {
        let error = match socket.send(&indication()) {
            // The error that the previous datagram caused is reported once, by the next call.
            Err(error) if is_refusal(&error) => Some(error),
            _ => {
                sleep(interval).await;
                let received = socket.recv(&mut [0; 1]);
                received.err().filter(is_refusal)
            }
        };
        if let Some(error) = error {
            refusals += 1;
            if refusals == REFUSALS {
                return Ok(error);
            }
        }
        sent += 1;
        if sent >= QUICK {
            interval *= 2;
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    // Windows reports the latter.
    let kinds = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset,
    ];
    kinds.contains(&error.kind())
}

/// A STUN binding indication without attributes (RFC 8489 section 5).
pub(crate) fn indication() -> [u8; 20] {
    let mut indication = [0; 20];
    indication[..8].copy_from_slice(&[0x00, 0x11, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    indication[8..].copy_from_slice(&rand::random::<[u8; 12]>());
    indication
}
