//! One connection for each server, dialled when it is needed and again after it has ended.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anabranch::delimited::{MessageWriteError, Messages};
use anabranch::{Address, Connection, Endpoint, OpenError};
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// The first pause between dials that fail. It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Of each attempt: more than an answer of an honest server takes. One that was killed says
/// nothing, so silence ends its connection.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Code of a call that is given up: the server can stop its work.
const CANCELLED: u32 = 1;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The call was not answered.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Not before its deadline.
    DeadlineExceeded {
        attempts: usize,
        last: Option<Error>,
    },
    /// It never will be.
    Refused(Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeadlineExceeded { attempts, last } => {
                write!(f, "no answer in time, after {attempts} attempts")?;
                last.as_ref()
                    .map_or(Ok(()), |last| write!(f, "; the last: {last}"))
            }
            Self::Refused(error) => write!(f, "refused: {error}"),
        }
    }
}

impl std::error::Error for CallError {}

/// Whether another attempt fails as well: the protocol is unknown there, or the request too long.
fn is_permanent(error: &Error) -> bool {
    let is_unsupported = matches!(
        error.downcast_ref::<OpenError>(),
        Some(OpenError::UnsupportedProtocol(_))
    );
    let is_too_long = matches!(
        error.downcast_ref::<MessageWriteError>(),
        Some(MessageWriteError::TooLong { .. })
    );
    is_unsupported || is_too_long
}

/// Connections to servers, shared by any number of callers.
pub(crate) struct Pool {
    endpoint: Endpoint,
    protocol: &'static str,
    max_message: usize,
    servers: Mutex<HashMap<Address, Arc<Mutex<Server>>>>,
    dials: AtomicUsize,
}

#[derive(Default)]
struct Server {
    connection: Option<Connection>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint, protocol: &'static str, max_message: usize) -> Self {
        Self {
            endpoint,
            protocol,
            max_message,
            servers: Mutex::default(),
            dials: AtomicUsize::new(0),
        }
    }

    /// Connections that were made.
    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Sends a request and returns the response.
    ///
    /// What fails is repeated until the deadline, on a new connection if the old one has ended: the
    /// server may see a request twice, so requests have to be idempotent.
    pub(crate) async fn call(
        &self,
        address: &Address,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let (deadline, mut attempts, mut last) = (Instant::now() + deadline, 0, None);
        let trying = async {
            loop {
                attempts += 1;
                match self.attempt(address, request.clone()).await {
                    Ok(response) => return Ok(response),
                    Err(error) if is_permanent(&error) => return Err(error),
                    Err(error) => last = Some(error),
                }
                sleep(FIRST_PAUSE).await;
            }
        };
        match timeout_at(deadline, trying).await {
            Ok(answered) => answered.map_err(CallError::Refused),
            Err(_) => Err(CallError::DeadlineExceeded { attempts, last }),
        }
    }

    async fn attempt(&self, address: &Address, request: Bytes) -> Result<Bytes, Error> {
        let server = Arc::clone(
            self.servers
                .lock()
                .await
                .entry(address.clone())
                .or_default(),
        );
        let connection = self.connection(&server, address).await?;
        let exchange = timeout(ATTEMPT, self.exchange(&connection, request)).await;
        match exchange {
            Ok(answered) => answered,
            Err(silence) => {
                let mut server = server.lock().await;
                // Unless another caller has replaced it. One that has ended is replaced anyway.
                if server.connection.as_ref().map(Connection::id) == Some(connection.id()) {
                    server.connection = None;
                }
                Err(silence.into())
            }
        }
    }

    /// The connection to a server. Callers that need a new one wait for the same dial.
    async fn connection(
        &self,
        server: &Mutex<Server>,
        address: &Address,
    ) -> Result<Connection, Error> {
        let mut server = server.lock().await;
        match &server.connection {
            Some(connection)
                if connection.close_reason().is_none() && !connection.is_draining() =>
            {
                return Ok(connection.clone());
            }
            _ => server.connection = None,
        }
        if let Some(not_before) = server.not_before {
            sleep_until(not_before).await;
        }
        let dialled = timeout(ATTEMPT, self.endpoint.connect(address)).await;
        match dialled.map_err(Error::from).and_then(|done| Ok(done?)) {
            Ok(connection) => {
                self.dials.fetch_add(1, Ordering::Relaxed);
                (server.failures, server.not_before) = (0, None);
                server.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(server.failures);
                // Not all clients of a server that comes back at once.
                let jitter = 0.5 + rand::random::<f64>() / 2.0;
                let pause = pause.min(LONGEST_PAUSE).mul_f64(jitter);
                server.failures = (server.failures + 1).min(16);
                server.not_before = Some(Instant::now() + pause);
                Err(error)
            }
        }
    }

    async fn exchange(&self, connection: &Connection, request: Bytes) -> Result<Bytes, Error> {
        // Also fails at once if the server drains: the next dial reaches its successor.
        let substream = connection.open(self.protocol).await?;
        substream.reset_on_drop(CANCELLED);
        let mut messages = Messages::new(substream, self.max_message);
        messages.write(request).await?;
        let response = messages.read().await?.ok_or("no response")?;
        messages.finish().await?;
        Ok(response)
    }
}
