//! Files as payloads, over any connection.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch::payload::{
    Payload, PayloadConfig, PayloadError, Payloads, Progress, Received, Receiver, Sender, Sent,
};
use anabranch::{Connection, PeerId};
use sha2::{Digest, Sha256};
use tokio::fs::{self, File};
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};

use crate::{Result, progress_bar};

pub(crate) const PROTOCOL: &str = "/transfer-payload/1.0.0";

/// Suffix of the name of an incomplete file.
const PART: &str = ".part";

/// Bytes of one write to a file.
const WRITE: usize = 1 << 20;

/// Files may be large, and disks slow; a silent peer is given up in any case.
fn limits() -> PayloadConfig {
    let mut config = PayloadConfig::default();
    config.max_total = 1 << 40;
    config.time_limit = Duration::from_secs(24 * 3600);
    config
}

/// Sends a file under its name. With its hash, the part that the receiver has is not sent again.
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

/// The files that are being received, of all connections: two of the same name and sender would
/// write to the same part.
#[derive(Clone, Default)]
pub(crate) struct Writing(Arc<Mutex<HashSet<PathBuf>>>);

impl Writing {
    /// `None` if another payload is being written to the same part.
    fn begin(&self, path: &Path) -> Option<Place> {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paths.insert(path.to_owned()).then(|| Place {
            writing: self.clone(),
            path: path.to_owned(),
        })
    }
}

/// Occupies one of them until it is dropped.
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

/// Receives files into a directory until the connection ends. Returns their number.
pub(crate) async fn receive_files(
    connection: &Connection,
    directory: &Path,
    writing: &Writing,
) -> Result<usize> {
    let sender = connection.peer_id().ok_or("a sender without identity")?;
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
        let Some(name) = name_of(&payload) else {
            eprintln!("refused: {:?} is no name for a file", payload.metadata());
            payload.cancel(1);
            continue;
        };
        let path = directory.join(name);
        let Some(place) = writing.begin(&part_of(directory, sender, name)) else {
            eprintln!("refused: {path:?} is being received already");
            payload.cancel(2);
            continue;
        };
        match receive_file(payload, &place.path, &path).await {
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

/// The file name of a payload. Its metadata comes from the peer, and must not name anything outside
/// of the directory, nor anything hidden, which excludes the part of a file.
fn name_of(payload: &Payload) -> Option<&str> {
    let name = std::str::from_utf8(payload.metadata()).ok()?;
    let is_name = Path::new(name).file_name() == Some(OsStr::new(name))
        && !name.starts_with('.')
        && !name.to_ascii_lowercase().ends_with(PART)
        && !name.chars().any(char::is_control);
    is_name.then_some(name)
}

/// The path of the part of a file: under another name, so that it is not mistaken for the whole
/// file, and one that depends on the sender. The length of a part, and whether a hash is that of
/// its bytes, are reported to the peer that resumes it.
fn part_of(directory: &Path, sender: PeerId, name: &str) -> PathBuf {
    let id = sender.to_bytes();
    // The id begins with its length.
    let digest = Sha256::new()
        .chain_update(&id)
        .chain_update(name)
        .finalize();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!(".{hex}{PART}"))
}

async fn receive_file(mut payload: Payload, part: &Path, path: &Path) -> Result<Received> {
    // A dangling link exists as well.
    if fs::symlink_metadata(path).await.is_ok() {
        payload.cancel(3);
        return Err("there is such a file, which is not overwritten".into());
    }
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(part)
        .await?;
    let have = file.metadata().await?.len();
    let offset = payload.resume(have, &mut file).await?;
    file.set_len(offset).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut writer = BufWriter::with_capacity(WRITE, file);
    let received = payload.copy_to(&mut writer).await;
    if received.is_err() {
        // All bytes that came are valid: the next attempt begins after them.
        writer.flush().await?;
    }
    let received = received?;
    // Otherwise a crash could leave the name without the bytes.
    writer.get_ref().sync_all().await?;
    publish(part, path).await?;
    Ok(received)
}

/// Gives a complete file its name. A link fails where a rename would overwrite a file that has
/// appeared meanwhile.
async fn publish(part: &Path, path: &Path) -> Result<()> {
    match fs::hard_link(part, path).await {
        Ok(()) => fs::remove_file(part).await?,
        // A file system without hard links.
        Err(_) if fs::symlink_metadata(path).await.is_err() => fs::rename(part, path).await?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anabranch::address::PeerAddress;
    use anabranch::{Endpoint, Identity};

    use super::*;

    /// A directory for this test alone.
    struct Directory(PathBuf);

    impl Directory {
        fn new(test: &str) -> Self {
            let name = format!("transfer-{test}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(path.join("received")).unwrap();
            Self(path)
        }

        fn received(&self) -> PathBuf {
            self.0.join("received")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Sends a file as `identity`, to a receiver into `directory`.
    async fn sent_as(identity: &Identity, file: &Path, directory: &Path) -> Result<Sent> {
        let listener = Endpoint::builder()
            .protocol(PROTOCOL)
            .bind("127.0.0.1:0")
            .await?;
        let dialler = Endpoint::builder().identity(identity.clone()).dial_only()?;
        let address = PeerAddress::WebRtcDirect(listener.addresses().remove(0));
        let receiving = async {
            let incoming = listener.accept().await.ok_or("nobody comes")?;
            let connection = incoming.accept().await?;
            receive_files(&connection, directory, &Writing::default()).await
        };
        let sending = async {
            let connection = crate::connect(&dialler, &address).await?;
            let sent = send_file(&connection, file, true).await;
            connection.close().await;
            sent
        };
        let (received, sent) = tokio::join!(receiving, sending);
        received?;
        dialler.close().await;
        listener.close().await;
        assert!(dialler.is_idle() && listener.is_idle());
        sent
    }

    #[tokio::test]
    async fn only_the_sender_that_began_a_file_resumes_it() {
        let place = Directory::new("resume");
        let (source, received) = (place.0.join("name"), place.received());
        let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&source, &content).unwrap();
        let [owner, stranger] = [1, 2].map(|seed| Identity::from_ed25519_seed([seed; 32]));
        let part = part_of(&received, owner.peer_id(), "name");
        let have = 100_000;
        std::fs::write(&part, &content[..have]).unwrap();

        // A stranger with the same file under the same name learns nothing of the part.
        let sent = sent_as(&stranger, &source, &received).await.unwrap();
        assert_eq!(sent.resumed_from, 0);
        assert_eq!(std::fs::read(&part).unwrap(), content[..have]);
        assert_eq!(std::fs::read(received.join("name")).unwrap(), content);

        std::fs::remove_file(received.join("name")).unwrap();
        let sent = sent_as(&owner, &source, &received).await.unwrap();
        assert_eq!(sent.resumed_from, have as u64);
        assert_eq!(std::fs::read(received.join("name")).unwrap(), content);
        let left: Vec<_> = std::fs::read_dir(&received).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn parts_differ_by_sender_and_name_and_no_payload_can_be_called_like_one() {
        let peers = [1, 2].map(|seed| Identity::from_ed25519_seed([seed; 32]).peer_id());
        let directory = Path::new("d");
        let parts: HashSet<_> = peers
            .iter()
            .flat_map(|peer| ["a", "b"].map(|name| part_of(directory, *peer, name)))
            .collect();
        assert_eq!(parts.len(), 4);
        for part in parts {
            let name = part.file_name().and_then(OsStr::to_str).unwrap();
            assert!(name.starts_with('.') && name.ends_with(PART), "{name}");
        }
    }
}
