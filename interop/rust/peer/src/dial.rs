//! The opener's side: connections, limits, failures, and one line of JSON for each repeat.

use std::fmt;
use std::future::Future;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::args::{Mode, Options};
use crate::json::Object;
use crate::measure::{Cpu, Memory};
use crate::{Connection, Stack, Substream, bench, cases, echo, idle, stall};

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

    /// Says more about where it happened.
    pub(crate) fn context(self, context: impl fmt::Display) -> Self {
        Self {
            message: format!("{context}: {}", self.message),
            ..self
        }
    }
}

/// A stack that dials one peer, and the options.
#[derive(Debug)]
pub(crate) struct Dialler<S> {
    stack: S,
    pub(crate) options: Options,
}

/// Does what the options say, as often as they say.
pub(crate) async fn run<S: Stack>(stack: S, options: Options) -> ExitCode {
    let dialler = Dialler { stack, options };
    let mut status = ExitCode::SUCCESS;
    for _ in 0..dialler.options.repeat {
        let line = match dialler.run_once().await {
            Ok(line) => line,
            Err(failure) => {
                status = ExitCode::FAILURE;
                Object::default()
                    .text("error", &failure.message)
                    .text("phase", failure.phase.name())
            }
        };
        println!("{}", line.line());
    }
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
        let connection = connection.as_ref();
        let line = Object::default().millis("connect_ms", connect);
        let result = match &self.options.mode {
            Mode::Echo => echo::run(self, connection, line).await,
            Mode::IdleStreams(count) => idle::substreams(self, connection, *count, line).await,
            Mode::Stall => stall::up(self, connection, line).await,
            Mode::StallDown => stall::down(self, connection, line).await,
            Mode::Cases(all) => cases::run(self, connection, all, line).await,
            Mode::Bench | Mode::Connections(_) => bench::run(self, connection, line).await,
        };
        // Also after a failure, whose error matters more than that of the close.
        let closed = self.close(connection).await;
        let line = result?;
        closed?;
        Ok(line)
    }

    /// Connects, and says how long that took.
    pub(crate) async fn connect(&self) -> Result<(Box<dyn Connection>, Duration), Failure> {
        let start = Instant::now();
        let attempt = self.stack.dial(&self.options.address);
        let connection = self.within(Phase::Connect, attempt).await?;
        Ok((connection, start.elapsed()))
    }

    /// Opens a substream.
    pub(crate) async fn open(
        &self,
        connection: &dyn Connection,
        protocol: &'static str,
    ) -> Result<Substream, Failure> {
        self.within(Phase::Open, connection.open(protocol)).await
    }

    /// Closes a connection.
    pub(crate) async fn close(&self, connection: &dyn Connection) -> Result<(), Failure> {
        self.within(Phase::Close, connection.close()).await
    }

    /// Gives an operation the time that `--timeout-s` says.
    pub(crate) async fn within<T, E: fmt::Display>(
        &self,
        phase: Phase,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.options.timeout, operation).await {
            Ok(result) => result.map_err(|error| Failure::new(phase, error)),
            Err(_) => {
                let limit = self.options.timeout;
                Err(Failure::new(
                    phase,
                    format_args!("not done within {limit:?}"),
                ))
            }
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
