//! Any transport of rust-libp2p as a [`Stack`]: the transport and its muxer, without a swarm, whose
//! tasks and behaviours would be measured as well.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use anabranch_peer::serve::{self, PROTOCOLS, Records};
use anabranch_peer::{Connection, IoSubstream, Settings, Stack};
use futures::SinkExt;
use futures::channel::{mpsc, oneshot};
use futures::stream::StreamExt;
use libp2p_core::muxing::{StreamMuxer, StreamMuxerBox, SubstreamBox};
use libp2p_core::transport::{Boxed, DialOpts, ListenerId, PortUse, Transport, TransportEvent};
use libp2p_core::{Endpoint, Multiaddr};
use libp2p_identity::{Keypair, PeerId};
use multistream_select::{Negotiated, Version, dialer_select_proto, listener_select_proto};

mod paced;

use paced::Paced;

type Output = (PeerId, StreamMuxerBox);

/// The transport of a program.
pub trait Kind: Send + Sync + 'static {
    /// Name of the program.
    const NAME: &'static str;

    /// Where `listen` binds by default.
    const LISTEN: &'static str;

    /// Whether the transport dials only from a socket that it listens on, and distinguishes the
    /// connections of that socket by the address of the peer alone: a second one to the same peer
    /// never opens.
    const ONE_SOCKET_EACH: bool;

    /// Maximum of the bytes of frames that may wait for a flush, for a transport that puts all of
    /// them into one message.
    fn max_unflushed() -> Option<usize> {
        None
    }

    /// Makes the transport.
    fn transport(keypair: Keypair) -> io::Result<Boxed<Output>>;
}

/// Dials with a transport.
pub struct Libp2p<K> {
    keypair: Keypair,
    /// Shared by all connections, where that works.
    shared: Option<Polled>,
    kind: PhantomData<K>,
}

/// A transport and the task that polls it, which ends on drop.
struct Polled {
    /// Locked to poll it and to begin a dial, neither of which blocks.
    transport: Arc<Mutex<Boxed<Output>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Polled {
    fn new(transport: Boxed<Output>) -> Self {
        let transport = Arc::new(Mutex::new(transport));
        let polled = Arc::clone(&transport);
        let task = tokio::spawn(poll_fn(move |cx| {
            let mut transport = polled.lock().unwrap_or_else(PoisonError::into_inner);
            while Pin::new(&mut *transport).poll(cx).is_ready() {}
            Poll::Pending
        }));
        Self { transport, task }
    }

    fn dial(
        &self,
        address: Multiaddr,
    ) -> io::Result<impl Future<Output = io::Result<Output>> + use<>> {
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        let mut transport = self
            .transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        transport.dial(address, options).map_err(io::Error::other)
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Kind> Stack for Libp2p<K> {
    const NAME: &'static str = K::NAME;
    const LISTEN: &'static str = K::LISTEN;

    type Address = Multiaddr;
    type Connection = Handle;

    async fn listen(addresses: &[Multiaddr]) -> io::Result<Vec<String>> {
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id();
        let mut transport = K::transport(keypair)?;
        let mut all = Vec::new();
        for address in addresses {
            let address = bind(&mut transport, address.clone()).await?;
            all.push(format!("{address}/p2p/{peer}"));
        }
        tokio::spawn(accept(transport, K::max_unflushed()));
        Ok(all)
    }

    async fn dialler(_: &Settings) -> io::Result<Self> {
        let keypair = Keypair::generate_ed25519();
        let shared = if K::ONE_SOCKET_EACH {
            None
        } else {
            Some(Polled::new(K::transport(keypair.clone())?))
        };
        Ok(Self {
            keypair,
            shared,
            kind: PhantomData,
        })
    }

    async fn dial(&self, address: &Multiaddr) -> io::Result<Handle> {
        let address = address.clone();
        let (dial, own) = match &self.shared {
            Some(shared) => (shared.dial(address)?, None),
            None => {
                let mut transport = K::transport(self.keypair.clone())?;
                bind(&mut transport, parse(K::LISTEN)?).await?;
                let own = Polled::new(transport);
                (own.dial(address)?, Some(own))
            }
        };
        let (_, muxer) = dial.await?;
        let (requests, inbox) = mpsc::channel(0);
        let max_unflushed = K::max_unflushed();
        tokio::spawn(Driver::new(muxer, Some(inbox), max_unflushed));
        Ok(Handle {
            requests,
            max_unflushed,
            _transport: own,
        })
    }
}

fn parse(address: &str) -> io::Result<Multiaddr> {
    address.parse().map_err(io::Error::other)
}

async fn bind(transport: &mut Boxed<Output>, address: Multiaddr) -> io::Result<Multiaddr> {
    transport
        .listen_on(ListenerId::next(), address)
        .map_err(io::Error::other)?;
    loop {
        match transport.select_next_some().await {
            TransportEvent::NewAddress { listen_addr, .. } => return Ok(listen_addr),
            TransportEvent::ListenerError { error, .. } => return Err(error),
            TransportEvent::ListenerClosed { .. } => {
                return Err(io::Error::other("the listener closed"));
            }
            _ => {}
        }
    }
}

/// Accepts every connection.
async fn accept(mut transport: Boxed<Output>, max_unflushed: Option<usize>) {
    loop {
        if let TransportEvent::Incoming { upgrade, .. } = transport.select_next_some().await {
            tokio::spawn(async move {
                match upgrade.await {
                    Ok((_, muxer)) => Driver::new(muxer, None, max_unflushed).await,
                    Err(error) => eprintln!("a dialler was not accepted: {error}"),
                }
            });
        }
    }
}

/// A request of a handle to the driver.
enum Request {
    Open(oneshot::Sender<io::Result<SubstreamBox>>),
    Close(oneshot::Sender<io::Result<()>>),
}

/// A connection that was dialled.
pub struct Handle {
    requests: mpsc::Sender<Request>,
    max_unflushed: Option<usize>,
    /// The transport of a connection that needs one of its own.
    _transport: Option<Polled>,
}

impl Connection for Handle {
    type Substream = IoSubstream;

    async fn open(&self, protocol: &'static str) -> io::Result<IoSubstream> {
        let mut requests = self.requests.clone();
        let (reply, opened) = oneshot::channel();
        requests
            .send(Request::Open(reply))
            .await
            .map_err(io::Error::other)?;
        let stream = opened.await.map_err(io::Error::other)??;
        let (_, stream) = dialer_select_proto(stream, [protocol], Version::V1)
            .await
            .map_err(io::Error::other)?;
        Ok(substream(stream, self.max_unflushed))
    }

    async fn close(&self) -> io::Result<()> {
        let mut requests = self.requests.clone();
        let (reply, closed) = oneshot::channel();
        requests
            .send(Request::Close(reply))
            .await
            .map_err(io::Error::other)?;
        closed.await.map_err(io::Error::other)?
    }
}

/// Polls one muxer until the connection ends, as a swarm does in a task for each.
struct Driver {
    muxer: StreamMuxerBox,
    /// Requests of the handle; an accepted connection has none.
    inbox: Option<mpsc::Receiver<Request>>,
    opening: VecDeque<oneshot::Sender<io::Result<SubstreamBox>>>,
    /// The waiter for the close that has begun, if any.
    closing: Option<Option<oneshot::Sender<io::Result<()>>>>,
    records: Arc<Records>,
    max_unflushed: Option<usize>,
}

impl Driver {
    fn new(
        muxer: StreamMuxerBox,
        inbox: Option<mpsc::Receiver<Request>>,
        max_unflushed: Option<usize>,
    ) -> Self {
        Self {
            muxer,
            inbox,
            opening: VecDeque::new(),
            closing: None,
            records: Arc::default(),
            max_unflushed,
        }
    }

    fn poll_muxer(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.muxer).poll(cx) {
                return Poll::Ready(error);
            }
            if !self.opening.is_empty()
                && let Poll::Ready(opened) = Pin::new(&mut self.muxer).poll_outbound(cx)
                && let Some(reply) = self.opening.pop_front()
            {
                let _ = reply.send(opened);
                continue;
            }
            match Pin::new(&mut self.muxer).poll_inbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    let records = Arc::clone(&self.records);
                    tokio::spawn(negotiate(stream, records, self.max_unflushed));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while self.closing.is_none()
            && let Some(Poll::Ready(request)) =
                self.inbox.as_mut().map(|inbox| inbox.poll_next_unpin(cx))
        {
            match request {
                Some(Request::Open(reply)) => self.opening.push_back(reply),
                Some(Request::Close(reply)) => self.closing = Some(Some(reply)),
                None => self.closing = Some(None),
            }
        }
        if self.closing.is_some() {
            let closed = ready!(Pin::new(&mut self.muxer).poll_close(cx));
            if let Some(Some(reply)) = self.closing.take() {
                let _ = reply.send(closed);
            }
            return Poll::Ready(());
        }
        // The loss of the sender reports the end to those that wait for a substream.
        self.poll_muxer(cx).map(drop)
    }
}

async fn negotiate(stream: SubstreamBox, records: Arc<Records>, max_unflushed: Option<usize>) {
    match listener_select_proto(stream, PROTOCOLS).await {
        Ok((protocol, stream)) => {
            let substream = substream(stream, max_unflushed);
            if let Err(error) = serve::respond(protocol.to_owned(), substream, records).await {
                eprintln!("responder: {error}");
            }
        }
        Err(error) => eprintln!("negotiation failed: {error}"),
    }
}

fn substream(stream: Negotiated<SubstreamBox>, max_unflushed: Option<usize>) -> IoSubstream {
    match max_unflushed {
        Some(limit) => IoSubstream::new(Paced::new(stream, limit)),
        None => IoSubstream::new(stream),
    }
}
