//! The client: sends a file, or fetches one, with progress, and resumes what an earlier attempt has
//! left.

use std::io::{IsTerminal, SeekFrom};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anabranch::address::PeerAddress;
use anabranch::payload::{
    PayloadConfig, PayloadError, Progress, Receiver, Rejection, SendError, Sender, code,
};
use anabranch::{Connection, Endpoint, Identity};
use tokio::fs::File;
use tokio::io::AsyncSeekExt;
use tokio::task::AbortHandle;
use tokio::time::interval;

use crate::Result;
use crate::protocol::{FileName, GET, PUT, Refusal, write_request};
use crate::service::with_causes;
use crate::store::publish;

/// How often progress is shown.
const SHOWN: Duration = Duration::from_millis(200);

/// The exit code for a transfer that the same command resumes (EX_TEMPFAIL of sysexits).
const TRY_AGAIN: u8 = 75;

/// The exit code of a program that the user has interrupted.
const INTERRUPTED: u8 = 130;

/// Why there is no file.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusal),
    /// The service has ended it for a reason of payloads, for example that it is too large.
    Rejected(Rejection),
    Cancelled,
    /// The connection has ended, or could not be made.
    Broken(String),
    Local(String),
}

impl Failure {
    /// Reports it, and returns what the process exits with.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Refused(refusal) => eprintln!("refused: {refusal}"),
            Self::Rejected(rejection) => eprintln!("ended by the service: {rejection}"),
            Self::Cancelled => eprintln!("cancelled; the same command resumes"),
            Self::Broken(error) => eprintln!("{error}; the same command resumes"),
            Self::Local(error) => eprintln!("{error}"),
        }
        match self {
            Self::Refused(refusal) if refusal.is_temporary() => ExitCode::from(TRY_AGAIN),
            Self::Broken(_) => ExitCode::from(TRY_AGAIN),
            Self::Cancelled => ExitCode::from(INTERRUPTED),
            Self::Refused(_) | Self::Rejected(_) | Self::Local(_) => ExitCode::FAILURE,
        }
    }

    fn local(error: impl std::error::Error) -> Self {
        Self::Local(with_causes(&error))
    }

    fn broken(error: impl std::error::Error) -> Self {
        Self::Broken(with_causes(&error))
    }

    fn ended(rejection: Rejection) -> Self {
        match (Refusal::of(rejection), rejection) {
            (Some(refusal), _) => Self::Refused(refusal),
            // The service goes, or has no connection any more.
            (None, Rejection::Code(_) | Rejection::Unspecified) => {
                Self::Broken(format!("ended by the service: {rejection}"))
            }
            (None, rejection) => Self::Rejected(rejection),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Rejected(rejection) => Self::ended(rejection),
            SendError::Cancelled(_) => Self::Cancelled,
            SendError::Unconfirmed(_) | SendError::Expired { .. } => Self::broken(error),
            error => Self::local(error),
        }
    }
}

impl From<PayloadError> for Failure {
    fn from(error: PayloadError) -> Self {
        match error {
            PayloadError::EndedBySender(rejection) => Self::ended(rejection),
            PayloadError::Cancelled(_) => Self::Cancelled,
            PayloadError::Local(_) | PayloadError::TooLarge { .. } => Self::local(error),
            error => Self::broken(error),
        }
    }
}

/// A complete transfer.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) total: u64,
    pub(crate) resumed: u64,
}

/// A task that ends with its value.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future).abort_handle())
    }
}

/// Shows progress: in place on a terminal, and in lines otherwise.
async fn show(progress: Progress) {
    let (begin, end) = match std::io::stderr().is_terminal() {
        true => ("\r", ""),
        false => ("", "\n"),
    };
    let mut ticks = interval(SHOWN);
    loop {
        ticks.tick().await;
        if let Some(total) = progress.total() {
            let moved = progress.transferred();
            eprint!("{begin}{moved} of {total} bytes{end}");
        }
    }
}

/// Cancels the payload when the user interrupts the program, so that the service is told at once.
async fn interrupt(cancel: impl FnOnce(u32)) {
    if tokio::signal::ctrl_c().await.is_ok() {
        cancel(code::CANCELLED);
    }
}

/// Clients accept files of any size: they have asked for them.
fn limits() -> PayloadConfig {
    let mut config = PayloadConfig::default();
    config.max_total = u64::MAX;
    config.time_limit = Duration::from_secs(24 * 3600);
    config
}

/// Sends a file under its name.
async fn put(connection: &Connection, path: &Path) -> Result<Moved, Failure> {
    let name = path.file_name().unwrap_or_default();
    let name = FileName::parse(name.as_encoded_bytes()).map_err(Failure::Refused)?;
    let file = File::open(path).await.map_err(Failure::local)?;
    let substream = connection.open(PUT).await.map_err(Failure::broken)?;
    let sender = Sender::new(substream, limits()).map_err(Failure::local)?;
    let sender = sender.metadata(name.as_str().to_owned());
    let canceller = sender.canceller();
    let _interrupt = Task::spawn(interrupt(move |code| canceller.cancel(code)));
    let _shown = Task::spawn(show(sender.progress()));
    let sent = sender.send_resumable(file).await?;
    Ok(Moved {
        total: sent.total,
        resumed: sent.resumed_from,
    })
}

/// Fetches a file into a directory. Until it is complete it is a hidden part beside its place.
async fn get(connection: &Connection, name: &str, directory: &Path) -> Result<Moved, Failure> {
    let name = FileName::parse(name.as_bytes()).map_err(Failure::Refused)?;
    let target = directory.join(name.as_str());
    let part = directory.join(format!(".{name}.part"));
    if target.symlink_metadata().is_ok() {
        return Err(Failure::Refused(Refusal::Exists));
    }
    let mut substream = connection.open(GET).await.map_err(Failure::broken)?;
    let asked = write_request(&mut substream, &name).await;
    asked.map_err(Failure::broken)?;
    let receiver = Receiver::new(limits()).map_err(Failure::local)?;
    let mut payload = receiver.receive(substream).await?;
    let canceller = payload.canceller();
    let _interrupt = Task::spawn(interrupt(move |code| canceller.cancel(code)));
    let _shown = Task::spawn(show(payload.progress()));

    let mut options = std::fs::File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&part).map_err(Failure::local)?;
    // Another process may fetch the same file.
    let locked = file.try_lock().map_err(std::io::Error::from);
    locked.map_err(Failure::local)?;
    let mut file = File::from_std(file);
    let have = file.metadata().await.map_err(Failure::local)?.len();
    let resumed = payload.resume(have, &mut file).await?;
    file.set_len(resumed).await.map_err(Failure::local)?;
    let sought = file.seek(SeekFrom::Start(resumed)).await;
    sought.map_err(Failure::local)?;
    let complete = payload.copy_unconfirmed(&mut file).await?;
    file.sync_all().await.map_err(Failure::local)?;
    publish(&part, &target).await.map_err(Failure::local)?;
    let received = complete.confirm().await?;
    Ok(Moved {
        total: received.total,
        resumed,
    })
}

/// What the client is asked to do.
#[derive(Debug)]
pub(crate) enum Job<'a> {
    Put(&'a Path),
    Get { name: &'a str, into: &'a Path },
}

/// Connects over the carrier of the address, and does the job.
pub(crate) async fn run(
    address: PeerAddress,
    identity: Identity,
    job: Job<'_>,
) -> Result<Moved, Failure> {
    let builder = Endpoint::builder().identity(identity);
    // Whoever passes a `ws` address accepts that the path can read what goes over it.
    let builder = builder.plaintext_websockets(true);
    let endpoint = builder.dial_only().map_err(Failure::local)?;
    let reached = endpoint.connect_any(&[address]).await;
    let connection = reached.map_err(Failure::broken)?.connection;
    let moved = match job {
        Job::Put(path) => put(&connection, path).await,
        Job::Get { name, into } => get(&connection, name, into).await,
    };
    // Delivers what is left to tell: a confirmation, or that it was cancelled.
    connection.close().await;
    endpoint.close().await;
    moved
}
