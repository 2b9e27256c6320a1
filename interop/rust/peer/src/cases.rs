//! `--case`: what a stack does rather than how fast.

use std::io;
use std::str::FromStr;
use std::time::Instant;

use futures::{AsyncReadExt, AsyncWriteExt};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::json::Object;
use crate::serve::{self, HALF_CLOSE, HALF_CLOSE_BYTES, RESET_ME, RESET_RESULT, RESET_YOU};
use crate::{Connection, Stack};

/// A case; the protocols are those of `interop/js/README.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Finishes writing and only then gets bytes.
    HalfClose,
    /// Resets a substream, and asks the responder whether it saw that.
    ResetLocal,
    /// Has a substream reset by the responder; must see no orderly end.
    ResetRemote,
}

const NAMES: [(&str, Case); 3] = [
    ("half-close", Case::HalfClose),
    ("reset-local", Case::ResetLocal),
    ("reset-remote", Case::ResetRemote),
];

impl FromStr for Case {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, case)| *case)
            .ok_or_else(|| format!("no case is called {name:?}"))
    }
}

/// Runs the cases one after another; adds how long each took to `line`.
pub(crate) async fn run<S: Stack>(
    dialler: &Dialler<S>,
    connection: &dyn Connection,
    all: &[Case],
    mut line: Object,
) -> Result<Object, Failure> {
    for (name, case) in NAMES.iter().filter(|(_, case)| all.contains(case)) {
        let start = Instant::now();
        let attempt = async {
            match case {
                Case::HalfClose => half_close(connection).await,
                Case::ResetLocal => reset_local(connection).await,
                Case::ResetRemote => reset_remote(connection).await,
            }
        };
        let result = dialler.within(Phase::Transfer, attempt).await;
        result.map_err(|failure| failure.context(name))?;
        line = line.millis(name, start.elapsed());
    }
    Ok(line)
}

async fn half_close(connection: &dyn Connection) -> io::Result<()> {
    let mut stream = connection.open(HALF_CLOSE).await?;
    content::send(&mut stream, 1000, 1000, |_| {}).await?;
    stream.close().await?;
    Checker::new()
        .receive_all(&mut stream, HALF_CLOSE_BYTES)
        .await
}

async fn reset_local(connection: &dyn Connection) -> io::Result<()> {
    let mut stream = connection.open(RESET_ME).await?;
    content::send(&mut stream, 1024, 1024, |_| {}).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    drop(stream);

    let mut result = connection.open(RESET_RESULT).await?;
    result.read_exact(&mut answer).await?;
    content::end(&mut result).await?;
    result.close().await?;
    match answer {
        [1] => Ok(()),
        _ => Err(content::invalid("the responder saw no reset".to_owned())),
    }
}

async fn reset_remote(connection: &dyn Connection) -> io::Result<()> {
    let mut stream = connection.open(RESET_YOU).await?;
    stream.write_all(&[1]).await?;
    stream.flush().await?;
    if serve::ended_by_reset(&mut stream).await {
        Ok(())
    } else {
        Err(content::invalid("saw no reset".to_owned()))
    }
}
