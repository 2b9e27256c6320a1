//! Serves the substreams of peers: each is one transfer.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anabranch::payload::{PayloadConfig, PayloadConfigError, Receiver, Sender, code};
use anabranch::{Connection, Endpoint, PeerId, Substream};
use tokio::io::BufWriter;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Result;
use crate::pace::Paced;
use crate::protocol::{FileName, PUT, Refusal, read_request};
use crate::store::Store;

/// How long a client may take to say which file it wants.
const REQUEST: Duration = Duration::from_secs(10);

/// Bytes of one write to a file.
const WRITE: usize = 256 << 10;

/// What clients may use.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of a file.
    pub(crate) max_size: u64,
    /// Complete files and parts, which together with `max_size` bounds the disk.
    pub(crate) max_files: usize,
    /// Transfers at once, of all clients.
    pub(crate) max_transfers: usize,
    /// Bytes a second of one transfer.
    pub(crate) rate: Option<u64>,
}

impl Limits {
    /// A silent peer is given up in any case; a slow one may take its time.
    pub(crate) fn of_payloads(&self) -> PayloadConfig {
        let mut config = PayloadConfig::default();
        config.max_total = self.max_size;
        config.max_open = self.max_transfers;
        config.time_limit = Duration::from_secs(24 * 3600);
        config
    }
}

/// The transfers of all peers.
#[derive(Debug)]
pub(crate) struct Service {
    store: Store,
    limits: Limits,
    receiver: Receiver,
    places: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(store: Store, limits: Limits) -> Result<Self, PayloadConfigError> {
        Ok(Self {
            store,
            receiver: Receiver::new(limits.of_payloads())?,
            places: Arc::new(Semaphore::new(limits.max_transfers)),
            limits,
        })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Transfers under way.
    pub(crate) fn transfers(&self) -> usize {
        self.limits.max_transfers - self.places.available_permits()
    }

    /// Serves every peer over WebRTC until the endpoint accepts no more.
    pub(crate) async fn accept(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let service = Arc::clone(&self);
            tokio::spawn(async move {
                let from = incoming.remote_address();
                match incoming.await {
                    Ok(connection) => service.serve(connection).await,
                    // Of this peer alone: the service goes on.
                    Err(error) => eprintln!("{from}: {error}"),
                }
            });
        }
    }

    /// Serves a connection over either carrier until it ends, also while it is drained.
    pub(crate) async fn serve(self: Arc<Self>, connection: Connection) {
        // Noise has proven who it is.
        let Some(peer) = connection.peer_id() else {
            return;
        };
        while let Ok(Some(substream)) = connection.accept().await {
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                substream.reset(Refusal::Busy.code());
                continue;
            };
            let service = Arc::clone(&self);
            tokio::spawn(async move {
                let done = match substream.protocol() {
                    Some(PUT) => service.put(peer, substream).await,
                    // Negotiation accepts no third protocol.
                    _ => service.get(substream).await,
                };
                match done {
                    Ok(done) => println!("{done}"),
                    Err(error) => eprintln!("{peer}: {error}"),
                }
                drop(place);
            });
        }
    }

    /// Receives a file, and confirms it when it has its name on the disk.
    async fn put(&self, peer: PeerId, substream: Substream) -> Result<Done> {
        let mut payload = self.receiver.receive(substream).await?;
        let name = match FileName::parse(payload.metadata()) {
            Ok(name) => name,
            Err(refusal) => {
                payload.cancel(refusal.code());
                return Err(refusal.into());
            }
        };
        let mut part = match self.store.begin(peer, &name, &payload.canceller()).await {
            Ok(part) => part,
            Err(error) => {
                payload.cancel(code_of(&error));
                return Err(error.into());
            }
        };
        let resumed = payload.resume(part.have, &mut part.file).await?;
        part.continue_at(resumed).await?;
        // A buffer of at most a second: while it is written, the payload makes no progress.
        let rate = self.limits.rate;
        let buffer = rate.map_or(WRITE, |rate| rate.clamp(1, WRITE as u64) as usize);
        let mut writer = BufWriter::with_capacity(buffer, Paced::new(&mut part.file, rate));
        let complete = payload.copy_unconfirmed(&mut writer).await?;
        drop(writer);
        if let Err(error) = part.publish().await {
            complete.cancel(code_of(&error));
            return Err(error.into());
        }
        let received = complete.confirm().await?;
        Ok(Done {
            what: "stored",
            name,
            total: received.total,
            resumed,
        })
    }

    /// Sends a file.
    async fn get(&self, mut substream: Substream) -> Result<Done> {
        let file = match self.requested(&mut substream).await {
            Ok(file) => file,
            Err(refusal) => {
                substream.reset(refusal.code());
                return Err(refusal.into());
            }
        };
        let (name, file) = file;
        let sender = Sender::new(substream, self.limits.of_payloads())?;
        let sent = sender
            .send_resumable(Paced::new(file, self.limits.rate))
            .await?;
        Ok(Done {
            what: "sent",
            name,
            total: sent.total,
            resumed: sent.resumed_from,
        })
    }

    async fn requested(
        &self,
        substream: &mut Substream,
    ) -> Result<(FileName, tokio::fs::File), Refusal> {
        let name = match timeout(REQUEST, read_request(substream)).await {
            Ok(Ok(name)) => FileName::parse(&name)?,
            Ok(Err(_)) | Err(_) => return Err(Refusal::BadRequest),
        };
        let file = self.store.read(&name).await?;
        Ok((name, file))
    }
}

/// The code that tells the peer of an error of the store.
fn code_of(error: &io::Error) -> u32 {
    let refusal = error.get_ref().and_then(|error| error.downcast_ref());
    refusal.map_or(code::LOCAL_FAILURE, |refusal: &Refusal| refusal.code())
}

/// A complete transfer.
#[derive(Debug)]
struct Done {
    what: &'static str,
    name: FileName,
    total: u64,
    resumed: u64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            name,
            total,
            resumed,
        } = self;
        write!(
            f,
            "{what} {name}: {total} bytes, of which {resumed} were there already"
        )
    }
}

/// An error with its causes.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
