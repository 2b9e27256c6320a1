//! The opener's side: connections, limits, failures, and one line of JSON for each repeat.

use std::fmt;
use std::future::Future;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anabranch::{Config, Connection, Endpoint, FinishError, Finished, Substream};

use crate::args::{Mode, Options};
use crate::json::Object;
use crate::measure::{Cpu, Memory};
use crate::{bench, echo, idle, serve, stall};

/// How long `--nofin` waits for the FIN_ACK of peers that may know none.
const NOFIN_ACK: Duration = Duration::from_secs(1);

/// What was being done when something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connect,
    Open,
    Transfer,
    Close,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Open => "open",
            Self::Transfer => "transfer",
            Self::Close => "close",
        }
    }
}

/// Why a repeat failed.
#[derive(Debug)]
pub(crate) struct Failure {
    phase: Phase,
    message: String,
}

impl Failure {
    pub(crate) fn new(phase: Phase, message: impl fmt::Display) -> Self {
        Self {
            phase,
            message: message.to_string(),
        }
    }

    /// For `map_err`: the failure of `what` in a phase.
    pub(crate) fn of<E: fmt::Display>(phase: Phase, what: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::new(phase, format_args!("{what}: {error}"))
    }

    /// Says more about where it happened.
    pub(crate) fn context(self, context: impl fmt::Display) -> Self {
        Self {
            message: format!("{context}: {}", self.message),
            ..self
        }
    }
}

/// An endpoint that dials one peer, and the options.
#[derive(Debug, Clone)]
pub(crate) struct Dialler {
    endpoint: Endpoint,
    pub(crate) options: Options,
}

fn new_endpoint(config: Config) -> Result<Endpoint, Failure> {
    let endpoint_config =
        serve::endpoint_config().map_err(|error| Failure::new(Phase::Connect, error))?;
    Endpoint::builder()
        .config(config)
        .endpoint_config(endpoint_config)
        .dial_only()
        .map_err(|error| Failure::new(Phase::Connect, error))
}

/// Does what the options say, as often as they say.
pub(crate) async fn run(options: Options) -> ExitCode {
    let mut config = serve::config();
    if options.nofin {
        config.fin_ack_timeout = NOFIN_ACK;
    }
    let endpoint = match new_endpoint(config) {
        Ok(endpoint) => endpoint,
        Err(failure) => {
            println!("{}", failure_line(&failure));
            return ExitCode::FAILURE;
        }
    };
    let repeats = options.repeat;
    let dialler = Dialler { endpoint, options };
    let mut status = ExitCode::SUCCESS;
    for _ in 0..repeats {
        match dialler.run_once().await {
            Ok(line) => println!("{}", line.line()),
            Err(failure) => {
                println!("{}", failure_line(&failure));
                status = ExitCode::FAILURE;
            }
        }
    }
    // What failed may have left a connection; the process ends in any case.
    let _ = tokio::time::timeout(dialler.options.timeout, dialler.endpoint.close()).await;
    status
}

fn failure_line(failure: &Failure) -> String {
    Object::default()
        .text("error", &failure.message)
        .text("phase", failure.phase.name())
        .line()
}

impl Dialler {
    async fn run_once(&self) -> Result<Object, Failure> {
        if self.options.peer_pid.is_some() && self.memory().peer.is_none() {
            return Err(Failure::new(
                Phase::Connect,
                "the memory of --peer-pid can not be read",
            ));
        }
        if let Mode::Connections(count) = self.options.mode {
            return idle::connections(self, count).await;
        }
        let (connection, connect) = self.connect().await?;
        let line = Object::default().millis("connect_ms", connect);
        let result = match self.options.mode {
            Mode::Echo => echo::run(self, &connection, line).await,
            Mode::IdleStreams(count) => idle::substreams(self, &connection, count, line).await,
            Mode::Stall => stall::up(self, &connection, line).await,
            Mode::StallDown => stall::down(self, &connection, line).await,
            Mode::Bench | Mode::Connections(_) => bench::run(self, &connection, line).await,
        };
        // Also after a failure, whose error matters more than that of the close.
        let closed = self.close(connection).await;
        let line = result?;
        closed?;
        Ok(line)
    }

    /// Connects, and says how long that took.
    pub(crate) async fn connect(&self) -> Result<(Connection, Duration), Failure> {
        let start = Instant::now();
        let Options {
            address, version, ..
        } = &self.options;
        let attempt = self.endpoint.connect_with(address, *version);
        let connection = self.within(Phase::Connect, attempt).await?;
        let took = start.elapsed();
        // Foreign peers open substreams as well, ping for one.
        tokio::spawn(serve::serve(connection.clone()));
        Ok((connection, took))
    }

    /// Opens a substream.
    pub(crate) async fn open(
        &self,
        connection: &Connection,
        protocol: &str,
    ) -> Result<Substream, Failure> {
        self.within(Phase::Open, connection.open(protocol)).await
    }

    /// Closes a connection, which must not have failed before.
    pub(crate) async fn close(&self, connection: Connection) -> Result<(), Failure> {
        if let Some(cause) = connection.close_reason() {
            return Err(Failure::new(
                Phase::Close,
                format_args!("ended too early: {cause}"),
            ));
        }
        let close = async {
            connection.close().await;
            match connection.close_reason() {
                Some(cause) if !cause.is_orderly() => Err(cause),
                _ => Ok(()),
            }
        };
        self.within(Phase::Close, close).await
    }

    /// Gives an operation the time that `--timeout-s` says.
    pub(crate) async fn within<T, E: fmt::Display>(
        &self,
        phase: Phase,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        self.within_limit(phase, self.options.timeout, operation)
            .await
    }

    /// Gives an operation that also waits on purpose the time for that, too.
    pub(crate) async fn within_limit<T, E: fmt::Display>(
        &self,
        phase: Phase,
        limit: Duration,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, operation).await {
            Ok(result) => result.map_err(|error| Failure::new(phase, error)),
            Err(_) => Err(Failure::new(
                phase,
                format_args!("not done within {limit:?}"),
            )),
        }
    }

    /// Whether this is a clean end of the stream to the peer. Peers for which there is `--nofin`
    /// end it in their own ways, after all bytes were confirmed by the protocol.
    pub(crate) fn check_outcome(
        &self,
        outcome: Result<Finished, FinishError>,
    ) -> Result<(), Failure> {
        let clean = match outcome {
            Ok(Finished::Acked) => true,
            Err(FinishError::TimedOut | FinishError::Stopped(_) | FinishError::ChannelClosed) => {
                self.options.nofin
            }
            _ => false,
        };
        if clean {
            Ok(())
        } else {
            Err(Failure::new(
                Phase::Close,
                format_args!("the close was not clean: {outcome:?}"),
            ))
        }
    }

    /// Memory of both processes now.
    pub(crate) fn memory(&self) -> Memory {
        Memory::now(self.options.peer_pid)
    }

    /// Processor time of both processes so far.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu::now(self.options.peer_pid)
    }
}
