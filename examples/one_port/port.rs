//! One UDP socket for two protocols: sorts what arrives into two bounded queues, and gives each
//! protocol a socket of the kind that it expects.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use anabranch::udp::{self, DatagramSocket, Ecn, Received, Transmit};
use quinn::udp::{EcnCodepoint, RecvMeta};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::task::AbortHandle;

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Bytes of datagrams that wait for one protocol; beyond it they are dropped, as a full socket
/// drops them. As much as a socket is asked to buffer (`udp::from_std`).
pub(crate) const QUEUE: usize = 2 << 20;

/// What a queue counts for each batch besides its bytes, so that tiny datagrams are bounded too.
pub(crate) const OVERHEAD: usize = 128;

/// Datagrams in one batch that quinn has room for: what Linux coalesces (UDP_GRO_CNT_MAX).
const COALESCED: usize = 64;

/// Which protocol a datagram belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// STUN and DTLS, of which webrtc-direct consists.
    WebRtc,
    Quic,
}

impl Protocol {
    /// By the table of RFC 9443. TURN channels share 64 to 79 with QUIC; there is no
    /// TURN server here whose address would tell them apart. ZRTP (16 to 19) and RTP (128 to 191)
    /// are nobody's.
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        match datagram.first()? {
            0..=3 | 20..=63 => Some(Self::WebRtc),
            64..=127 | 192..=255 => Some(Self::Quic),
            _ => None,
        }
    }
}

/// Datagrams from one sender, back to back.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) source: SocketAddr,
    pub(crate) destination: Option<IpAddr>,
    pub(crate) contents: Vec<u8>,
    pub(crate) stride: usize,
    pub(crate) ecn: Ecn,
}

impl Batch {
    pub(crate) fn datagrams(&self) -> u64 {
        self.contents.len().div_ceil(self.stride) as u64
    }
}

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) batches: VecDeque<Batch>,
    pub(crate) bytes: usize,
    pub(crate) reader: Option<Waker>,
    /// Why nothing follows what waits.
    ended: Option<io::ErrorKind>,
}

/// What waits for one protocol.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    delivered: AtomicU64,
    overflowed: AtomicU64,
}

impl Queue {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Valid after a panic: nothing is half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, batch: Batch) {
        let mut waiting = self.lock();
        let size = batch.contents.len() + OVERHEAD;
        if waiting.bytes + size > QUEUE {
            let dropped = batch.datagrams();
            self.overflowed.fetch_add(dropped, Ordering::Relaxed);
            return;
        }
        waiting.bytes += size;
        waiting.batches.push_back(batch);
        let reader = waiting.reader.take();
        drop(waiting);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn end(&self, error: io::ErrorKind) {
        let mut waiting = self.lock();
        waiting.ended = Some(error);
        let reader = waiting.reader.take();
        drop(waiting);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(crate) fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        let mut waiting = self.lock();
        let Some(batch) = waiting.batches.pop_front() else {
            if let Some(error) = waiting.ended {
                return Poll::Ready(Err(error.into()));
            }
            waiting.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        waiting.bytes -= batch.contents.len() + OVERHEAD;
        self.delivered
            .fetch_add(batch.datagrams(), Ordering::Relaxed);
        Poll::Ready(Ok(batch))
    }
}

/// What became of the datagrams that the port has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) received: u64,
    pub(crate) delivered: [u64; 2],
    /// Dropped because the queue of the protocol was full.
    pub(crate) overflowed: [u64; 2],
    /// Dropped because the first byte is neither protocol's.
    pub(crate) unclaimed: u64,
}

/// Sorts received datagrams into the queues of their protocols.
#[derive(Debug, Default)]
pub(crate) struct Demultiplexer {
    pub(crate) webrtc: Queue,
    pub(crate) quic: Queue,
    received: AtomicU64,
    unclaimed: AtomicU64,
}

impl Demultiplexer {
    /// Each datagram by itself: two nodes like this one send both protocols between the same two
    /// addresses, and the kernel coalesces what has one length.
    pub(crate) fn sort(&self, received: &Received<'_>) {
        let mut rest = received.contents;
        let stride = received.stride;
        self.received
            .fetch_add(rest.len().div_ceil(stride) as u64, Ordering::Relaxed);
        while !rest.is_empty() {
            let protocol = Protocol::of(rest);
            let same = rest
                .chunks(stride)
                .take_while(|d| Protocol::of(d) == protocol);
            let len = same.map(<[u8]>::len).sum();
            let (run, others) = rest.split_at(len);
            rest = others;
            let batch = Batch {
                source: received.source,
                destination: received.destination,
                contents: run.to_vec(),
                stride,
                ecn: received.ecn,
            };
            match protocol {
                Some(Protocol::WebRtc) => self.webrtc.push(batch),
                Some(Protocol::Quic) => self.quic.push(batch),
                None => {
                    let dropped = batch.datagrams();
                    self.unclaimed.fetch_add(dropped, Ordering::Relaxed);
                }
            }
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let queues = [&self.webrtc, &self.quic];
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            received: of(&self.received),
            delivered: queues.map(|queue| of(&queue.delivered)),
            overflowed: queues.map(|queue| of(&queue.overflowed)),
            unclaimed: of(&self.unclaimed),
        }
    }
}

/// Receives until it is aborted or the socket fails. One receive call a turn, half a megabyte at
/// most, so that the readers of the queues get theirs.
async fn receive(socket: Arc<dyn DatagramSocket>, sorted: Arc<Demultiplexer>) {
    loop {
        let mut sort = |received: Received<'_>| sorted.sort(&received);
        let polled = std::future::poll_fn(|cx| socket.poll_receive(cx, &mut sort)).await;
        if let Err(error) = polled {
            // The socket has ended, and each protocol learns of it.
            sorted.webrtc.end(error.kind());
            sorted.quic.end(error.kind());
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Ends the task that receives, and so closes the port, with the last side that holds it.
#[derive(Debug)]
struct Receiving(AbortHandle);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One UDP port for both protocols: a socket for each of them.
#[derive(Debug, Clone)]
pub(crate) struct OnePort {
    socket: Arc<dyn DatagramSocket>,
    pub(crate) sorted: Arc<Demultiplexer>,
    _receiving: Arc<Receiving>,
}

impl OnePort {
    /// Must be called within a tokio runtime.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = udp::from_std(std::net::UdpSocket::bind(address)?)?;
        let sorted = Arc::new(Demultiplexer::default());
        let task = tokio::spawn(receive(Arc::clone(&socket), Arc::clone(&sorted)));
        Ok(Self {
            socket,
            sorted,
            _receiving: Arc::new(Receiving(task.abort_handle())),
        })
    }

    /// For [`Endpoint::listen_on_socket`].
    pub(crate) fn webrtc(&self) -> Arc<dyn DatagramSocket> {
        Arc::new(WebRtcSide(self.clone()))
    }

    /// For [`quinn::Endpoint::new_with_abstract_socket`], with [`quic_config`].
    pub(crate) fn quic(&self) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(QuicSide(self.clone()))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.sorted.counts()
    }
}

/// Asks peers to send the fixed bit of QUIC, which RFC 9287 lets them clear: without it their
/// datagrams would look like those of other protocols (RFC 9443).
pub(crate) fn quic_config() -> quinn::EndpointConfig {
    let mut config = quinn::EndpointConfig::default();
    config.grease_quic_bit(false);
    config
}

#[derive(Debug)]
struct WebRtcSide(OnePort);

impl DatagramSocket for WebRtcSide {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.socket.try_send(transmit)
    }

    fn writable(self: Arc<Self>) -> Writable {
        Arc::clone(&self.0.socket).writable()
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Poll<io::Result<()>> {
        self.0.sorted.webrtc.poll_pop(cx).map(|batch| {
            let batch = batch?;
            let received = Received::new(batch.source, &batch.contents, batch.stride);
            let received = received.with_ecn(batch.ecn);
            sink(match batch.destination {
                Some(destination) => received.with_destination(destination),
                None => received,
            });
            Ok(())
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.local_addr()
    }

    fn max_segments(&self) -> usize {
        self.0.socket.max_segments()
    }

    fn source_towards(&self, remote: SocketAddr) -> io::Result<IpAddr> {
        self.0.socket.source_towards(remote)
    }

    fn may_fragment(&self) -> bool {
        self.0.socket.may_fragment()
    }
}

#[derive(Debug)]
struct QuicSide(OnePort);

impl AsyncUdpSocket for QuicSide {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: Arc::clone(&self.0.socket),
            waiting: Mutex::new(None),
        })
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        let unspecified = match transmit.destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ecn = transmit
            .ecn
            .map_or(Ecn::NotEct, |ecn| Ecn::from_bits(ecn as u8));
        let mut datagrams = Transmit::new(transmit.destination, transmit.contents)
            .with_source(transmit.src_ip.unwrap_or(unspecified))
            .with_ecn(ecn);
        datagrams.segment_size = transmit.segment_size;
        match self.0.socket.try_send(&datagrams) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Any other error is packet loss; quinn would end the connection.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let batch = match self.0.sorted.quic.poll_pop(cx) {
                Poll::Ready(Ok(batch)) => batch,
                Poll::Ready(Err(error)) if filled == 0 => return Poll::Ready(Err(error)),
                _ => break,
            };
            // It fits: the kernel coalesces 64 KiB, and quinn's buffers have room for `COALESCED`
            // datagrams of 1472 bytes, unless its configuration makes them shorter.
            let len = batch.contents.len().min(buffer.len());
            buffer[..len].copy_from_slice(&batch.contents[..len]);
            *meta = RecvMeta {
                addr: batch.source,
                len,
                stride: batch.stride,
                ecn: EcnCodepoint::from_bits(batch.ecn.bits()),
                dst_ip: batch.destination,
            };
            filled += 1;
        }
        match filled {
            0 => Poll::Pending,
            filled => Poll::Ready(Ok(filled)),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.socket.max_segments()
    }

    fn max_receive_segments(&self) -> usize {
        COALESCED
    }

    fn may_fragment(&self) -> bool {
        self.0.socket.may_fragment()
    }
}

/// Waits for room in the socket, for one task of quinn.
struct Poller {
    socket: Arc<dyn DatagramSocket>,
    /// Never contended: quinn wants a `Sync` type, and polls it exclusively.
    waiting: Mutex<Option<Writable>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let waiting = this
            .waiting
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let writable = waiting.get_or_insert_with(|| Arc::clone(&this.socket).writable());
        let polled = writable.as_mut().poll(cx);
        if polled.is_ready() {
            *waiting = None;
        }
        polled
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}
