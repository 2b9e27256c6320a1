//! Files and parts of files on a disk.
//!
//! A file gets its name when it is complete, and not before. Until then it is a part, under a name
//! that depends on the peer: the length of a part, and whether a hash is that of its bytes, are
//! told to the peer that resumes it.

use std::collections::HashMap;
use std::io::{self, ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anabranch::PeerId;
use anabranch::payload::Canceller;
use sha2::{Digest, Sha256};
use tokio::fs::{self, File};
use tokio::io::AsyncSeekExt;
use tokio::sync::watch;

use crate::protocol::{FileName, Refusal};

/// A directory with complete files, and one with parts.
#[derive(Debug)]
pub(crate) struct Store {
    files: PathBuf,
    parts: PathBuf,
    /// Files and parts together.
    max_files: usize,
    /// The parts that are being written.
    writing: Mutex<HashMap<PathBuf, Writing>>,
    /// Held while a part is made, so that all of them are counted.
    making: tokio::sync::Mutex<()>,
    /// Locked as long as this process runs.
    _lock: std::fs::File,
}

#[derive(Debug)]
struct Writing {
    canceller: Canceller,
    ended: watch::Receiver<()>,
}

/// The only writer of a part, until it is dropped.
#[derive(Debug)]
struct Place<'a> {
    store: &'a Store,
    path: PathBuf,
    _ended: watch::Sender<()>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let writing = &self.store.writing;
        let mut writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.remove(&self.path);
    }
}

/// A part that is being written.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    place: Place<'a>,
    target: PathBuf,
    pub(crate) file: File,
    /// Bytes of it that are here.
    pub(crate) have: u64,
}

impl Store {
    /// Opens a directory, which is made if it is not there.
    pub(crate) fn open(directory: &Path, max_files: usize) -> io::Result<Self> {
        let [files, parts] = ["files", "parts"].map(|name| directory.join(name));
        std::fs::create_dir_all(&files)?;
        std::fs::create_dir_all(&parts)?;
        let lock = std::fs::File::create(directory.join("lock"))?;
        lock.try_lock().map_err(|error| {
            let error = io::Error::from(error);
            let reason = format!("{}: {error}", directory.display());
            io::Error::new(error.kind(), reason)
        })?;
        Ok(Self {
            files,
            parts,
            max_files,
            writing: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            _lock: lock,
        })
    }

    /// Opens a complete file.
    pub(crate) async fn read(&self, name: &FileName) -> Result<File, Refusal> {
        let file = File::open(self.files.join(name.as_str())).await;
        let file = file.map_err(|_| Refusal::NotFound)?;
        match file.metadata().await {
            Ok(metadata) if metadata.is_file() => Ok(file),
            _ => Err(Refusal::NotFound),
        }
    }

    /// Opens the part of a file of `peer`. An earlier upload of the same file by the same peer is
    /// ended: its connection may be dead without a sign of it yet.
    pub(crate) async fn begin(
        &self,
        peer: PeerId,
        name: &FileName,
        canceller: &Canceller,
    ) -> io::Result<Part<'_>> {
        let path = self.parts.join(part_name(peer, name));
        let place = loop {
            match self.claim(&path, canceller) {
                Ok(place) => break place,
                // An error: the other has ended.
                Err(mut ended) => while ended.changed().await.is_ok() {},
            }
        };
        let target = self.files.join(name.as_str());
        // A dangling link exists as well.
        if fs::symlink_metadata(&target).await.is_ok() {
            return Err(refused(Refusal::Exists));
        }
        let making = self.making.lock().await;
        if fs::symlink_metadata(&path).await.is_err() {
            self.make_room().await?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).await?;
        drop(making);
        let have = file.metadata().await?.len();
        Ok(Part {
            place,
            target,
            file,
            have,
        })
    }

    /// Cancels the writer of a part, if there is one, and returns what completes with it.
    fn claim(&self, path: &Path, canceller: &Canceller) -> Result<Place<'_>, watch::Receiver<()>> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = writing.get(path) {
            other.canceller.cancel(Refusal::Superseded.code());
            return Err(other.ended.clone());
        }
        let (sender, ended) = watch::channel(());
        let canceller = canceller.clone();
        writing.insert(path.to_owned(), Writing { canceller, ended });
        Ok(Place {
            store: self,
            path: path.to_owned(),
            _ended: sender,
        })
    }

    /// Makes room for one part: deletes the one that has been left alone for longest, if all room
    /// is taken.
    async fn make_room(&self) -> io::Result<()> {
        let mut count = 0;
        let mut entries = fs::read_dir(&self.files).await?;
        while entries.next_entry().await?.is_some() {
            count += 1;
        }
        let mut oldest: Option<(SystemTime, PathBuf)> = None;
        let mut entries = fs::read_dir(&self.parts).await?;
        while let Some(entry) = entries.next_entry().await? {
            count += 1;
            let changed = entry.metadata().await?.modified()?;
            let path = entry.path();
            if !self.is_written(&path) && oldest.as_ref().is_none_or(|(at, _)| changed < *at) {
                oldest = Some((changed, path));
            }
        }
        match oldest {
            _ if count < self.max_files => Ok(()),
            Some((_, part)) if count == self.max_files => fs::remove_file(part).await,
            _ => Err(refused(Refusal::Full)),
        }
    }

    fn is_written(&self, part: &Path) -> bool {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.contains_key(part)
    }
}

impl Part<'_> {
    /// Continues at `offset`, and forgets what comes after it.
    pub(crate) async fn continue_at(&mut self, offset: u64) -> io::Result<()> {
        self.file.set_len(offset).await?;
        self.file.seek(SeekFrom::Start(offset)).await?;
        Ok(())
    }

    /// Gives the complete file its name, on the disk too.
    pub(crate) async fn publish(self) -> io::Result<()> {
        self.file.sync_all().await?;
        let published = publish(&self.place.path, &self.target).await;
        match published {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Another peer was faster: nothing can become of this part.
                fs::remove_file(&self.place.path).await?;
                Err(refused(Refusal::Exists))
            }
            published => published,
        }
    }
}

/// Names a complete file without overwriting one that has appeared meanwhile: a link fails where a
/// rename would replace.
pub(crate) async fn publish(part: &Path, target: &Path) -> io::Result<()> {
    fs::hard_link(part, target).await?;
    fs::remove_file(part).await?;
    #[cfg(unix)]
    if let Some(directory) = target.parent().filter(|path| !path.as_os_str().is_empty()) {
        File::open(directory).await?.sync_all().await?;
    }
    Ok(())
}

fn refused(refusal: Refusal) -> io::Error {
    io::Error::other(refusal)
}

fn part_name(peer: PeerId, name: &FileName) -> String {
    let digest = Sha256::new()
        // The id begins with its length.
        .chain_update(peer.to_bytes())
        .chain_update(name.as_str())
        .finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
