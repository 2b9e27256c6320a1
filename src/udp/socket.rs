//! A UDP socket with segmentation offload, and the trait that a simulator can implement.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use anabranch_rtc::Ecn;
use quinn_udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Requested size of the kernel's receive and send buffers, in bytes; the kernel may grant less.
/// Holds one bandwidth-delay product at 1 Gbit/s and 20 ms.
const KERNEL_BUFFER: usize = 2 * 1024 * 1024;

/// Maximum buffers in one receive call, each with up to 64 KiB of datagrams from one sender.
const RECEIVE_BUFFERS: usize = 8;

/// Maximum size of a coalesced receive (GRO).
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Datagrams from one sender, back to back.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Received<'a> {
    /// The sender.
    pub source: SocketAddr,
    /// The local address that they were sent to, if the system reported it.
    pub destination: Option<IpAddr>,
    /// The datagrams.
    pub contents: &'a [u8],
    /// Size of each datagram but the last, which may be shorter. At least one.
    pub stride: usize,
    /// Their ECN codepoint (RFC 3168); [`Ecn::NotEct`] where the system does not report it.
    pub ecn: Ecn,
}

/// Datagrams to one peer, back to back.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Transmit<'a> {
    /// The receiver.
    pub destination: SocketAddr,
    /// The local address to send from; unspecified leaves the choice to the system.
    pub source: IpAddr,
    /// The datagrams.
    pub contents: &'a [u8],
    /// Size of each datagram but the last, where there is more than one.
    pub segment_size: Option<usize>,
    /// The ECN codepoint to send them with (RFC 3168). A socket that can not set it ignores it: the
    /// peer reports no marks then, and the connection goes on without ECN.
    pub ecn: Ecn,
}

impl<'a> Received<'a> {
    /// Datagrams of `stride` bytes each, of which the last may be shorter, without a known
    /// destination.
    pub fn new(source: SocketAddr, contents: &'a [u8], stride: usize) -> Self {
        Self {
            source,
            destination: None,
            contents,
            stride: stride.max(1),
            ecn: Ecn::NotEct,
        }
    }

    /// Sets their ECN codepoint.
    #[must_use]
    pub fn with_ecn(mut self, ecn: Ecn) -> Self {
        self.ecn = ecn;
        self
    }

    /// Sets the local address that they were sent to.
    #[must_use]
    pub fn with_destination(mut self, destination: IpAddr) -> Self {
        self.destination = Some(destination);
        self
    }
}

impl<'a> Transmit<'a> {
    /// One datagram, from the source address that the system selects.
    pub fn new(destination: SocketAddr, contents: &'a [u8]) -> Self {
        Self {
            destination,
            source: wildcard(destination),
            contents,
            segment_size: None,
            ecn: Ecn::NotEct,
        }
    }

    /// Sets the ECN codepoint to send with.
    #[must_use]
    pub fn with_ecn(mut self, ecn: Ecn) -> Self {
        self.ecn = ecn;
        self
    }

    /// Sets the local address to send from.
    #[must_use]
    pub fn with_source(mut self, source: IpAddr) -> Self {
        self.source = source;
        self
    }

    /// Makes it several datagrams of this size, of which the last may be shorter.
    #[must_use]
    pub fn with_segment_size(mut self, segment_size: usize) -> Self {
        self.segment_size = Some(segment_size);
        self
    }
}

/// Sends and receives datagrams. Any task may send; one task receives.
///
/// Later versions may add methods, with defaults.
pub trait DatagramSocket: Send + Sync + fmt::Debug {
    /// Sends at once.
    ///
    /// # Errors
    /// `WouldBlock` while the socket is full. Any other error drops the datagrams, which counts as
    /// packet loss.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// Completes when a send can succeed again. It must not complete before: the sender tries again
    /// at once, and would spin. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket; the sender then tries again all the same.
    fn writable(self: Arc<Self>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    /// Passes received datagrams to `sink`, at least one per `Ready(Ok(()))`. Empty datagrams are
    /// skipped. Only one task may poll: its waker replaces the previous one.
    ///
    /// # Errors
    /// Those that end the socket. An error of one datagram, such as an ICMP error of an earlier
    /// send, is not one: receive on.
    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Poll<io::Result<()>>;

    /// The address the socket is bound to.
    ///
    /// # Errors
    /// Those of the system.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Maximum datagrams in one send. By default one.
    fn max_segments(&self) -> usize {
        1
    }

    /// Whether a datagram that is longer than the path carries may arrive in fragments, rather than
    /// not at all. By default yes. For other protocols on the same socket, which probe the path MTU
    /// only if not; anabranch's own probes do not ask.
    fn may_fragment(&self) -> bool {
        true
    }

    /// The source address that the system currently selects for `remote`.
    ///
    /// # Errors
    /// Those of the system, for example without a route.
    fn source_towards(&self, remote: SocketAddr) -> io::Result<IpAddr>;
}

/// The wildcard address of the family of `address`.
pub(crate) fn wildcard(address: SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A socket of the operating system.
pub(crate) struct UdpDatagramSocket {
    io: UdpSocket,
    state: UdpSocketState,
    /// Maximum datagrams in one send.
    max_segments: AtomicUsize,
}

impl fmt::Debug for UdpDatagramSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UdpDatagramSocket")
            .field(&self.io.local_addr())
            .finish()
    }
}

impl UdpDatagramSocket {
    /// Binds a socket. Must be called within a tokio runtime.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_with(address, |_| Ok(()))
    }

    /// Binds `count` sockets to one address, among which the system distributes the senders
    /// (SO_REUSEPORT). Must be called within a tokio runtime.
    #[cfg(unix)]
    pub(crate) fn bind_many(mut address: SocketAddr, count: usize) -> io::Result<Vec<Self>> {
        let mut sockets = Vec::new();
        for _ in 0..count {
            let socket = Self::bind_with(address, |socket| socket.set_reuse_port(true))?;
            // All of them share the port that the system selected.
            address = socket.local_addr()?;
            sockets.push(socket);
        }
        Ok(sockets)
    }

    fn bind_with(
        address: SocketAddr,
        prepare: impl FnOnce(&socket2::Socket) -> io::Result<()>,
    ) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        if address.is_ipv6() {
            // An IPv4 peer must not appear with a mapped address: ICE compares addresses.
            socket.set_only_v6(true)?;
        }
        prepare(&socket)?;
        socket.bind(&address.into())?;
        Self::new(socket.into())
    }

    /// Wraps a bound socket. Must be called within a tokio runtime.
    pub(crate) fn new(socket: StdUdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let options = socket2::SockRef::from(&socket);
        // Best effort: a small buffer costs throughput, not correctness.
        let _ = options.set_recv_buffer_size(KERNEL_BUFFER);
        let _ = options.set_send_buffer_size(KERNEL_BUFFER);
        #[cfg(target_os = "linux")]
        keep_coalescing_enabled();
        let state = UdpSocketState::new((&socket).into())?;
        let io = UdpSocket::from_std(socket)?;
        let max_segments = AtomicUsize::new(state.max_gso_segments());
        Ok(Self {
            io,
            state,
            max_segments,
        })
    }

    fn send_at_once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let source = transmit.source;
        // The kernel answers EINVAL, after which quinn-udp marks nothing any more: anybody could
        // end ECN for all peers with a forged source.
        if transmit.destination.port() == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let datagrams = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: EcnCodepoint::from_bits(transmit.ecn.bits()),
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: (!source.is_unspecified()).then_some(source),
        };
        self.io.try_io(Interest::WRITABLE, || {
            self.state.try_send((&self.io).into(), &datagrams)
        })
    }

    /// Called when the send of a batch failed. If its first datagram alone succeeds, segmentation
    /// offload does not work here, and is turned off.
    ///
    /// quinn-udp turns it off after any error of this kind. But an address that can not be sent to,
    /// for example one with port 0, causes the same error, and a forged source would end batches
    /// for everybody.
    fn try_without_batch(&self, batch: &Transmit<'_>) {
        let first = Transmit {
            contents: batch
                .contents
                .get(..batch.segment_size.unwrap_or_default())
                .unwrap_or_default(),
            segment_size: None,
            ..*batch
        };
        if self.send_at_once(&first).is_ok() {
            tracing::info!(target: "anabranch::endpoint", "segmentation offload turned off");
            self.max_segments.store(1, Ordering::Relaxed);
        }
    }
}

/// Keeps one IPv6 socket with UDP_GRO for the life of the process, unbound, so that nothing arrives
/// at it.
///
/// quinn-udp tries the option on a new IPv6 socket for each socket that it is given. While the host
/// has no other such socket, the kernel patches its code when that one comes and again when it goes
/// (`udpv6_encap_needed_key`), with an interrupt of every processor: 8 to 10 % of a handshake on
/// loopback.
#[cfg(target_os = "linux")]
fn keep_coalescing_enabled() {
    use socket2::{Domain, Socket, Type};
    static KEPT: std::sync::OnceLock<Option<Socket>> = std::sync::OnceLock::new();
    KEPT.get_or_init(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).ok()?;
        UdpSocketState::new((&socket).into()).ok()?;
        Some(socket)
    });
}

/// Whether this is the error of Linux for a batch that a network adapter can not segment: EINVAL or
/// EIO.
fn is_of_batches(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error() == Some(EIO)
}

/// Whether a datagram is longer than the network adapter takes (EMSGSIZE of Linux, of BSD and
/// macOS, of Windows).
fn is_too_long(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(90 | 40 | 10_040))
}

thread_local! {
    /// Receive buffers of the thread. With buffers of its own each connection would hold half a
    /// megabyte.
    static BUFFERS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl DatagramSocket for UdpDatagramSocket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.send_at_once(transmit);
        if sent.as_ref().is_err_and(is_too_long) {
            // A probe of the path MTU. It is lost as on a router, and no sign of a broken path.
            return Ok(());
        }
        if let Err(error) = &sent
            && transmit.segment_size.is_some()
            && is_of_batches(error)
        {
            self.try_without_batch(transmit);
        }
        sent
    }

    fn writable(self: Arc<Self>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Box::pin(async move { self.io.writable().await })
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let result = BUFFERS.with_borrow_mut(|buffers| {
                if buffers.is_empty() {
                    // Zeroed by the system, page by page: a `resize` writes, and so makes all of it
                    // resident, where short datagrams use a page of each buffer.
                    *buffers = vec![0; RECEIVE_BUFFERS * RECEIVE_BUFFER];
                }
                let mut meta = [RecvMeta::default(); RECEIVE_BUFFERS];
                let count = {
                    let mut chunks = buffers.chunks_exact_mut(RECEIVE_BUFFER);
                    let mut slices: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
                        std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
                    self.io.try_io(Interest::READABLE, || {
                        self.state.recv((&self.io).into(), &mut slices, &mut meta)
                    })?
                };
                for (buffer, meta) in buffers.chunks_exact(RECEIVE_BUFFER).zip(&meta[..count]) {
                    if let Some(contents) = buffer.get(..meta.len).filter(|c| !c.is_empty()) {
                        sink(Received {
                            source: meta.addr,
                            destination: meta.dst_ip,
                            contents,
                            stride: meta.stride.max(1),
                            ecn: meta
                                .ecn
                                .map_or(Ecn::NotEct, |ecn| Ecn::from_bits(ecn as u8)),
                        });
                    }
                }
                io::Result::Ok(())
            });
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An ICMP error of an earlier send, which does not concern this receive.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_segments(&self) -> usize {
        self.max_segments.load(Ordering::Relaxed)
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn source_towards(&self, remote: SocketAddr) -> io::Result<IpAddr> {
        let probe = StdUdpSocket::bind((wildcard(remote), 0))?;
        // Sends nothing: `connect` of a UDP socket only looks up the route.
        probe.connect(remote)?;
        Ok(probe.local_addr()?.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagrams(
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> Transmit<'_> {
        Transmit {
            destination,
            source: destination.ip(),
            contents,
            segment_size,
            ecn: Ecn::NotEct,
        }
    }

    /// On one path of every family, alone and in a batch.
    #[tokio::test]
    async fn codepoints_arrive_as_they_were_sent() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let address = address.parse().unwrap();
            let sender = UdpDatagramSocket::bind(address).unwrap();
            let receiver = UdpDatagramSocket::bind(address).unwrap();
            sender.io.writable().await.unwrap();
            let to = receiver.local_addr().unwrap();
            let batch = (sender.max_segments() > 1).then_some(20);
            for ecn in [Ecn::Ect0, Ecn::NotEct, Ecn::Ce, Ecn::Ect1] {
                for segment_size in [None, batch] {
                    let transmit = datagrams(to, &[7; 40], segment_size).with_ecn(ecn);
                    sender.try_send(&transmit).unwrap();
                    let mut bytes = 0;
                    while bytes < 40 {
                        std::future::poll_fn(|cx| {
                            receiver.poll_receive(cx, &mut |received| {
                                assert_eq!(received.ecn, ecn, "{to}, {segment_size:?}");
                                bytes += received.contents.len();
                            })
                        })
                        .await
                        .unwrap();
                    }
                }
            }
        }
    }

    /// quinn-udp sets the option that forbids it; macOS before version 11 has none.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_does_not_fragment_what_a_path_can_not_carry() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(address).unwrap();
            let socket = crate::udp::from_std(socket).unwrap();
            assert!(!socket.may_fragment(), "{address}");
        }
    }

    #[tokio::test]
    async fn an_address_that_nothing_can_be_sent_to_does_not_end_batches_to_others() {
        let socket = UdpDatagramSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.io.writable().await.unwrap();
        let segments = socket.max_segments();
        // The source of a datagram with port 0.
        let nowhere = "127.0.0.1:0".parse().unwrap();
        for segment_size in [None, (segments > 1).then_some(20)] {
            let error = socket.try_send(&datagrams(nowhere, &[7; 40], segment_size));
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(socket.max_segments(), segments);
        }
        if segments > 1 {
            let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let to = peer.local_addr().unwrap();
            let batch = datagrams(to, &[7; 40], Some(20));
            socket.try_send(&batch).unwrap();
            let mut buffer = [0; 100];
            for _ in 0..2 {
                assert_eq!(peer.recv(&mut buffer).await.unwrap(), 20);
            }
        }
    }
}
