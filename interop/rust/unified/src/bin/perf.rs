//! The application of the `perf` tests: the dialler uploads, downloads and measures latency on one
//! connection and reports the statistics; the listener serves until it is killed. Variables of the
//! environment in `unified::Environment`, and those that `Amounts` reads.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::request_response::{self, Message};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm};
use unified::perf::{Codec, Request, Response, behaviour};
use unified::{
    AnyError, Environment, Summary, count, listening_address, node, number, publish,
    wait_for_listener,
};

type Node = Swarm<request_response::Behaviour<Codec>>;

const GIB: u64 = 1 << 30;
const TEN: NonZeroU32 = NonZeroU32::new(10).expect("10");
const HUNDRED: NonZeroU32 = NonZeroU32::new(100).expect("100");

/// What the dialler transfers, and how often. `DURATION` is for baselines, as in other stacks.
struct Amounts {
    upload: Request,
    uploads: NonZeroU32,
    download: Request,
    downloads: NonZeroU32,
    latencies: NonZeroU32,
}

impl Amounts {
    fn read() -> Result<Self, AnyError> {
        Ok(Self {
            upload: Request {
                upload: number("UPLOAD_BYTES", GIB)?,
                download: 0,
            },
            uploads: count("UPLOAD_ITERATIONS", TEN)?,
            download: Request {
                upload: 0,
                download: number("DOWNLOAD_BYTES", GIB)?,
            },
            downloads: count("DOWNLOAD_ITERATIONS", TEN)?,
            latencies: count("LATENCY_ITERATIONS", HUNDRED)?,
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let environment = Environment::read()?;
    eprintln!("{environment:?}");
    let timeout = environment.timeout;
    let mut node = node(&environment, |_| behaviour(environment.stack, timeout)).await?;
    if !environment.is_dialer {
        let address = listening_address(&mut node, &environment).await?;
        publish(&environment, &address).await?;
        eprintln!("published {address}");
        return serve(node, environment.debug).await;
    }
    let amounts = Amounts::read()?;
    let address = wait_for_listener(&environment).await?;
    eprintln!("dialling {address}");
    let dialled = tokio::time::timeout(timeout, connect(&mut node, address)).await;
    let mut peer = Peer {
        id: dialled??,
        node,
    };
    let gigabits = |bytes: u64| move |time: Duration| bytes as f64 * 8e-9 / time.as_secs_f64();
    let of = |amount: Request| gigabits(amount.upload.max(amount.download));
    let upload = peer.measure(amounts.upload, amounts.uploads, of(amounts.upload));
    let upload = upload.await?;
    let download = peer.measure(amounts.download, amounts.downloads, of(amounts.download));
    let download = download.await?;
    let byte = Request {
        upload: 1,
        download: 1,
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let latency = peer.measure(byte, amounts.latencies, milliseconds).await?;
    print!("{}", upload.section("upload", "Gbps"));
    print!("{}", download.section("download", "Gbps"));
    print!("{}", latency.section("latency", "ms"));
    Ok(())
}

async fn serve(mut node: Node, debug: bool) -> Result<(), AnyError> {
    loop {
        let event = node.select_next_some().await;
        if debug {
            eprintln!("{event:?}");
        }
        if let SwarmEvent::Behaviour(request_response::Event::Message {
            message: Message::Request {
                request, channel, ..
            },
            ..
        }) = event
        {
            let response = Response {
                download: request.download,
            };
            // The peer may have gone.
            if node
                .behaviour_mut()
                .send_response(channel, response)
                .is_err()
            {
                eprintln!("nobody waits for {response:?}");
            }
        }
    }
}

async fn connect(node: &mut Node, address: Multiaddr) -> Result<PeerId, AnyError> {
    node.dial(address)?;
    loop {
        match node.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok(peer_id),
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
}

/// The listener, and the node that is connected to it.
struct Peer {
    id: PeerId,
    node: Node,
}

impl Peer {
    /// Repeats a request. `sample` makes a sample from the time of each.
    async fn measure(
        &mut self,
        request: Request,
        iterations: NonZeroU32,
        sample: impl Fn(Duration) -> f64,
    ) -> Result<Summary, AnyError> {
        let mut samples = Vec::new();
        for _ in 0..iterations.get() {
            let time = self.request(request).await?;
            eprintln!("{request:?} in {time:?}");
            samples.push(sample(time));
        }
        Ok(Summary::of(samples).ok_or("no iteration")?)
    }

    /// The time from the request to the end of the response.
    async fn request(&mut self, request: Request) -> Result<Duration, AnyError> {
        let begin = Instant::now();
        self.node.behaviour_mut().send_request(&self.id, request);
        loop {
            match self.node.select_next_some().await {
                SwarmEvent::Behaviour(request_response::Event::Message {
                    message: Message::Response { response, .. },
                    ..
                }) => {
                    let time = begin.elapsed();
                    if response.download != request.download {
                        return Err(format!("{request:?}: {response:?}").into());
                    }
                    return Ok(time);
                }
                SwarmEvent::Behaviour(request_response::Event::OutboundFailure {
                    error, ..
                }) => return Err(error.into()),
                SwarmEvent::ConnectionClosed { cause, .. } => {
                    return Err(format!("closed: {cause:?}").into());
                }
                _ => {}
            }
        }
    }
}
