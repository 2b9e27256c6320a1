//! `--case`: the behaviour of a stack rather than its speed. Reports the milliseconds of each case.

use std::io;
use std::str::FromStr;
use std::time::Instant;

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::json::Object;
use crate::serve::{HALF_CLOSE, HALF_CLOSE_BYTES, RESET_ME, RESET_RESULT, RESET_YOU};
use crate::{Connection, Stack, Substream, Writer};

/// A case; `interop/js/README.md` describes the protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Finishes writing, and gets bytes only after that.
    HalfClose,
    /// Resets a substream, and asks the responder whether it saw the reset.
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

/// Runs the cases one after another and adds the time of each to `line`.
pub(crate) async fn run<S: Stack>(
    dialler: &Dialler<S>,
    connection: &S::Connection,
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

async fn half_close(connection: &impl Connection) -> io::Result<()> {
    let (mut reader, mut writer) = connection.open(HALF_CLOSE).await?.into_split();
    content::send(&mut writer, 1000, 1000, |_| {}).await?;
    writer.finish().await?;
    let mut checker = Checker::default();
    checker.receive_all(&mut reader, HALF_CLOSE_BYTES).await
}

async fn reset_local<C: Connection>(connection: &C) -> io::Result<()> {
    let (mut reader, mut writer) = connection.open(RESET_ME).await?.into_split();
    content::send(&mut writer, 1024, 1024, |_| {}).await?;
    content::read_bytes::<1>(&mut reader).await?;
    C::Substream::reset(reader, writer);

    let (mut reader, writer) = connection.open(RESET_RESULT).await?.into_split();
    let [saw_reset] = content::read_bytes(&mut reader).await?;
    content::end(&mut reader).await?;
    // Not confirmed: the responder may have stopped reading before the end.
    writer.close().await?;
    match saw_reset {
        1 => Ok(()),
        _ => Err(content::invalid("the responder saw no reset".to_owned())),
    }
}

async fn reset_remote(connection: &impl Connection) -> io::Result<()> {
    let (mut reader, mut writer) = connection.open(RESET_YOU).await?.into_split();
    content::send_bytes(&mut writer, &[1]).await?;
    match content::ended_by_reset(&mut reader).await {
        true => Ok(()),
        false => Err(content::invalid("saw no reset".to_owned())),
    }
}
