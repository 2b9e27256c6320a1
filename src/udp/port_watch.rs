//! Whether anybody listens at a UDP port, as far as the system hears of it.
//!
//! A host without a listener answers with an ICMP error, and the system reports that to a connected socket only. The
//! socket of a dial is not connected: it must be able to move to another source address, and what a
//! system reports to it would have to be told from errors of its own sends for as long as the connection lives; on Linux
//! an error also makes the readiness of a socket useless for good. So a dial that is not answered has a second socket,
//! which is connected and gone as soon as anything comes from the peer. It sends STUN indications, which are
//! keepalives, and which no agent answers (RFC 8445 section 11).
//!
//! Who can not see the datagrams does not know the port of that socket, and the system compares all four of addresses and
//! ports with those in the ICMP error. Who does see them can break a dial off in other ways too. Still, one
//! error ends nothing: a listener may be restarting. It takes [`REFUSALS`] of them, and 400 ms.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::sleep;

use super::socket::wildcard;

/// Errors that end a dial.
const REFUSALS: u32 = 3;

/// Time to the first datagram: a listener within 50 ms never sees one.
const FIRST: Duration = Duration::from_millis(50);

/// Time between the first datagrams, and in which an error is waited for. Linux sends six errors to one host at
/// once, and one a second then; the checks of ICE use them up as well.
const INTERVAL: Duration = Duration::from_millis(200);

/// Datagrams before the time between them doubles.
const QUICK: u32 = 4;

/// Completes with what the system says when it has said it often enough, and never otherwise.
pub(super) async fn watch(remote: SocketAddr) -> io::Error {
    match refusals(remote).await {
        Ok(refused) => refused,
        Err(error) => {
            // The dial has its own time limit.
            tracing::debug!(target: "anabranch::endpoint", %remote, %error, "port not watched");
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
            // The error that the one before has caused is reported once, by whatever is called first.
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
fn indication() -> [u8; 20] {
    let mut indication = [0; 20];
    indication[..8].copy_from_slice(&[0x00, 0x11, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    indication[8..].copy_from_slice(&rand::random::<[u8; 12]>());
    indication
}
