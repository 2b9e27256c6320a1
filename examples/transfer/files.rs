//! Files as payloads, over any connection.

use std::ffi::OsStr;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch::Connection;
use anabranch::payload::{
    Payload, PayloadConfig, PayloadError, Payloads, Progress, Received, Receiver, Sender, Sent,
};
use tokio::fs::{self, File};
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};

use crate::{Result, progress_bar};

pub(crate) const PROTOCOL: &str = "/transfer-payload/1.0.0";

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

/// Receives files into a directory until the connection ends. Returns how many.
pub(crate) async fn receive_files(connection: &Connection, directory: &Path) -> Result<usize> {
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
            eprintln!("refused: {:?} is no file name", payload.metadata());
            payload.cancel(1);
            continue;
        };
        match receive_file(payload, &path).await {
            Ok(received) => {
                files += 1;
                println!(
                    "received {}: {} bytes, the first {} were here already",
                    path.display(),
                    received.total,
                    received.resumed_from
                );
            }
            Err(error) => eprintln!("{}: {error}", path.display()),
        }
    }
    Ok(files)
}

/// Where a payload goes: its metadata comes from the peer, and must name nothing outside of the directory.
fn place_of(payload: &Payload, directory: &Path) -> Option<PathBuf> {
    let name = std::str::from_utf8(payload.metadata()).ok()?;
    let is_name = Path::new(name).file_name() == Some(OsStr::new(name));
    is_name.then(|| directory.join(name))
}

/// A part of a file lies under another name, so that nobody takes it for the whole.
async fn receive_file(mut payload: Payload, path: &Path) -> Result<Received> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
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
    fs::rename(&part, path).await?;
    Ok(received)
}
