//! The opener's side: connections, limits, failures, and one line of JSON for each repeat.

use std::fmt;
use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::args::{Mode, Options};
use crate::json::Object;
use crate::measure::{Cpu, Memory};
use crate::{Connection, Stack, bench, cases, echo, idle, stall};

/// The substream type of a stack.
pub(crate) type SubstreamOf<S> = <<S as Stack>::Connection as Connection>::Substream;

/// What the opener was doing when it failed.
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

    /// The failure of a [`Writer::finish`](crate::Writer::finish) after all bytes were transferred.
    pub(crate) fn unclean_close(error: std::io::Error) -> Self {
        let message = format_args!("the close was not clean: {error}");
        Self::new(Phase::Close, message)
    }

    /// Adds where it happened.
    pub(crate) fn context(self, context: impl fmt::Display) -> Self {
        Self {
            message: format!("{context}: {}", self.message),
            ..self
        }
    }

    fn line(&self) -> Object {
        Object::default()
            .text("error", &self.message)
            .text("phase", self.phase.name())
    }
}

/// A stack that dials one peer, and the options.
#[derive(Debug)]
pub(crate) struct Dialler<S: Stack> {
    stack: S,
    pub(crate) options: Arc<Options<S::Address>>,
}

/// Runs what the options select, as often as they demand.
pub(crate) async fn run<S: Stack>(options: Options<S::Address>) -> ExitCode {
    let stack = match S::dialler(&options.settings).await {
        Ok(stack) => stack,
        Err(error) => {
            println!("{}", Failure::new(Phase::Connect, error).line().line());
            return ExitCode::FAILURE;
        }
    };
    let options = Arc::new(options);
    let dialler = Dialler { stack, options };
    let mut status = ExitCode::SUCCESS;
    for _ in 0..dialler.options.repeat {
        let line = dialler.run_once().await.unwrap_or_else(|failure| {
            status = ExitCode::FAILURE;
            failure.line()
        });
        println!("{}", line.line());
    }
    // A failure may have left a connection; the process ends in any case.
    let _ = tokio::time::timeout(dialler.options.timeout, dialler.stack.close()).await;
    status
}

impl<S: Stack> Dialler<S> {
    async fn run_once(&self) -> Result<Object, Failure> {
        if self.options.peer_pid.is_some() && self.memory().peer.is_none() {
            let message = "the memory of --peer-pid can not be read";
            return Err(Failure::new(Phase::Connect, message));
        }
        if let Mode::Connections(count) = self.options.mode {
            return idle::connections(self, count).await;
        }
        let (connection, connect) = self.connect().await?;
        let line = Object::default().millis("connect_ms", connect);
        let result = match &self.options.mode {
            Mode::Echo => echo::run(self, &connection, line).await,
            Mode::IdleStreams(count) => idle::substreams(self, &connection, *count, line).await,
            Mode::Stall => stall::up(self, &connection, line).await,
            Mode::StallDown => stall::down(self, &connection, line).await,
            Mode::Cases(all) => cases::run(self, &connection, all, line).await,
            Mode::Bench | Mode::Connections(_) => bench::run(self, &connection, line).await,
        };
        // Also after a failure, whose error matters more than that of the close.
        let closed = self.close(connection).await;
        let line = result?;
        closed?;
        Ok(line)
    }

    /// Connects, and returns how long that took.
    pub(crate) async fn connect(&self) -> Result<(S::Connection, Duration), Failure> {
        let start = Instant::now();
        let attempt = self.stack.dial(&self.options.address);
        let connection = self.within(Phase::Connect, attempt).await?;
        Ok((connection, start.elapsed()))
    }

    /// Opens a substream.
    pub(crate) async fn open(
        &self,
        connection: &S::Connection,
        protocol: &'static str,
    ) -> Result<SubstreamOf<S>, Failure> {
        self.within(Phase::Open, connection.open(protocol)).await
    }

    /// Closes a connection.
    pub(crate) async fn close(&self, connection: S::Connection) -> Result<(), Failure> {
        self.within(Phase::Close, connection.close()).await
    }

    /// See [`Options::within`].
    pub(crate) async fn within<T, E: fmt::Display>(
        &self,
        phase: Phase,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        self.options.within(phase, operation).await
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

impl<A> Options<A> {
    /// Limits an operation to the time of `--timeout-s`.
    pub(crate) async fn within<T, E: fmt::Display>(
        &self,
        phase: Phase,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, operation).await {
            Ok(result) => result.map_err(|error| Failure::new(phase, error)),
            Err(_) => {
                let message = format_args!("not done within {:?}", self.timeout);
                Err(Failure::new(phase, message))
            }
        }
    }
}
