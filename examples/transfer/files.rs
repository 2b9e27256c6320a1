//! Files as payloads, over any connection.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch::Connection;
use anabranch::payload::{
    Payload, PayloadConfig, PayloadError, Payloads, Progress, Received, Receiver, Sender, Sent,
};
use tokio::fs::{self, File};
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};

use crate::{Result, progress_bar};

pub(crate) const PROTOCOL: &str = "/transfer-payload/1.0.0";

/// How the name of a file ends that is not complete.
const PART: &str = ".part";

/// Bytes that are written to a file at a time.
const WRITE: usize = 1 << 20;

/// Files may be large, and disks slow; a peer that falls silent is given up in any case.
fn limits() -> PayloadConfig {
    let mut config = PayloadConfig::default();
    config.max_total = 1 << 40;
    config.time_limit = Duration::from_secs(24 * 3600);
    config
}

/// Sends a file under its name; with its hash, what the receiver has of it is left out.
pub(crate) async fn send_file(connection: &Connection, path: &Path, hash: bool) -> Result<Sent> {
    let name = path.file_name().and_then(OsStr::to_str);
    let name = name.ok_or("the file has no name that can be sent")?;
    let file = File::open(path).await?;
    let total = file.metadata().await?.len();
    let substream = connection.open(PROTOCOL).await?;
    let sender = Sender::new(substream, limits())?.metadata(name.to_owned());
    let progress = sender.progress();
    let showing = tokio::spawn(show(progress, total));
    let sent = if hash {
        sender.send_resumable(file).await
    } else {
        sender.send_reader(file, Some(total)).await
    };
    showing.abort();
    Ok(sent?)
}

async fn show(progress: Progress, total: u64) {
    let Ok(bar) = progress_bar(total) else {
        return;
    };
    loop {
        bar.set_position(progress.transferred());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The files that are being received, of all connections: two of one name would write to the same part.
#[derive(Clone, Default)]
pub(crate) struct Writing(Arc<Mutex<HashSet<PathBuf>>>);

impl Writing {
    /// `None` if another payload is being written there.
    fn begin(&self, path: &Path) -> Option<Place> {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paths.insert(path.to_owned()).then(|| Place {
            writing: self.clone(),
            path: path.to_owned(),
        })
    }
}

/// One of them, until this is dropped.
struct Place {
    writing: Writing,
    path: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let paths = &self.writing.0;
        let mut paths = paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.remove(&self.path);
    }
}

/// Receives files into a directory until the connection ends. Returns how many.
pub(crate) async fn receive_files(
    connection: &Connection,
    directory: &Path,
    writing: &Writing,
) -> Result<usize> {
    let receiver = Receiver::new(limits())?;
    let mut payloads = Payloads::new(connection, PROTOCOL, &receiver);
    let mut files = 0;
    while let Some(payload) = payloads.accept().await {
        let payload = match payload {
            Ok(payload) => payload,
            Err(PayloadError::Connection(error)) => return Err(error.into()),
            Err(error) => {
                eprintln!("refused: {error}");
                continue;
            }
        };
        let Some(path) = place_of(&payload, directory) else {
            eprintln!("refused: {:?} is no name for a file", payload.metadata());
            payload.cancel(1);
            continue;
        };
        let Some(place) = writing.begin(&path) else {
            eprintln!("refused: {path:?} is being received already");
            payload.cancel(2);
            continue;
        };
        match receive_file(payload, &place.path).await {
            Ok(received) => {
                files += 1;
                println!(
                    "received {path:?}: {} bytes, the first {} were here already",
                    received.total, received.resumed_from
                );
            }
            Err(error) => eprintln!("{path:?}: {error}"),
        }
    }
    Ok(files)
}

/// Where a payload goes: its metadata comes from the peer, and must name nothing outside of the directory,
/// nothing hidden, and no part of another file.
fn place_of(payload: &Payload, directory: &Path) -> Option<PathBuf> {
    let name = std::str::from_utf8(payload.metadata()).ok()?;
    let is_name = Path::new(name).file_name() == Some(OsStr::new(name))
        && !name.starts_with('.')
        && !name.to_ascii_lowercase().ends_with(PART)
        && !name.chars().any(char::is_control);
    is_name.then(|| directory.join(name))
}

/// A part of a file lies under another name, so that nobody takes it for the whole.
async fn receive_file(mut payload: Payload, path: &Path) -> Result<Received> {
    // A link that leads nowhere is there too.
    if fs::symlink_metadata(path).await.is_ok() {
        payload.cancel(3);
        return Err("there is such a file, which is not overwritten".into());
    }
    let mut part = path.as_os_str().to_owned();
    part.push(PART);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&part)
        .await?;
    let have = file.metadata().await?.len();
    let offset = payload.resume(have, &mut file).await?;
    file.set_len(offset).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut writer = BufWriter::with_capacity(WRITE, file);
    let received = payload.copy_to(&mut writer).await;
    if received.is_err() {
        // Whatever came is good: the next attempt begins behind it.
        writer.flush().await?;
    }
    let received = received?;
    // Or a crash could leave the name without the bytes.
    writer.get_ref().sync_all().await?;
    publish(Path::new(&part), path).await?;
    Ok(received)
}

/// Gives a whole file its name. A link fails where a rename would overwrite what has appeared meanwhile.
async fn publish(part: &Path, path: &Path) -> Result<()> {
    match fs::hard_link(part, path).await {
        Ok(()) => fs::remove_file(part).await?,
        // A file system that knows no links.
        Err(_) if fs::symlink_metadata(path).await.is_err() => fs::rename(part, path).await?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
