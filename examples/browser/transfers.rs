//! Downloads and uploads that go on where an earlier connection was cut.

use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anabranch::Substream;
use anabranch::payload::{Canceller, PayloadConfig, PayloadError, Sender, code, receive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::relay::mix;

/// Reads a length of 8 bytes, and sends a payload of it. The same length has the same content.
pub(crate) const DOWNLOAD: &str = "/download";
/// Receives a payload. Its metadata names it: another of the same name goes on with its bytes.
pub(crate) const UPLOAD: &str = "/upload";

/// Uploads that are not complete, received or waiting for the rest, over all connections.
const MAX_UPLOADS: usize = 4;
/// What they may become together, by the lengths that their senders announce.
const MAX_BYTES: u64 = 128 * 1024 * 1024;
/// The default of [`PayloadConfig::max_total`], for a payload that announces no length.
const MAX_UPLOAD: u64 = 64 * 1024 * 1024;
/// Bytes in a second that an upload takes at most: there is time to cut it.
const RATE: f64 = 5e6;
/// Bytes after which that is enforced.
const SLICE: usize = 64 * 1024;

pub(crate) async fn download(mut substream: Substream) -> io::Result<()> {
    let length = substream.read_u64().await?;
    let sender = Sender::new(substream, PayloadConfig::default()).map_err(io::Error::other)?;
    let sent = sender.send_resumable(Content::new(length)).await;
    sent.map(drop).map_err(io::Error::other)
}

/// Numbers without a period, made where they are read.
struct Content {
    length: u64,
    position: u64,
}

impl Content {
    fn new(length: u64) -> Self {
        Self {
            length,
            position: 0,
        }
    }
}

impl AsyncRead for Content {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.length.saturating_sub(self.position);
        let room = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.remaining());
        let mut filled = 0;
        while filled < room {
            let word = mix(self.length ^ (self.position / 8)).to_le_bytes();
            let word = &word[(self.position % 8) as usize..];
            let part = &word[..word.len().min(room - filled)];
            buffer.put_slice(part);
            filled += part.len();
            self.position += part.len() as u64;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Content {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

/// What has arrived of uploads that are not complete, the latest last.
#[derive(Clone, Default)]
pub(crate) struct Uploads(Arc<Mutex<Vec<Place>>>);

struct Place {
    upload: Arc<Upload>,
    /// The most that it may hold.
    total: u64,
}

impl Place {
    /// Otherwise only the list holds it.
    fn is_received(&self) -> bool {
        Arc::strong_count(&self.upload) > 1
    }
}

fn bytes_of<'a>(places: impl Iterator<Item = &'a Place>) -> u64 {
    places.map(|place| place.total).sum()
}

#[derive(Default)]
struct Upload {
    name: Vec<u8>,
    /// Whoever holds it receives.
    bytes: tokio::sync::Mutex<Vec<u8>>,
    /// Ends the one that does.
    receiving: Mutex<Option<Canceller>>,
}

impl Uploads {
    pub(crate) async fn receive(&self, substream: Substream) -> io::Result<()> {
        let mut payload = receive(substream).await.map_err(io::Error::other)?;
        let total = payload.total().unwrap_or(MAX_UPLOAD);
        let Some(upload) = self.claim(payload.metadata(), total) else {
            payload.cancel(code::TOO_MANY);
            return Ok(());
        };
        // A connection that was cut is not known to be dead yet.
        let earlier = lock(&upload.receiving).replace(payload.canceller());
        if let Some(earlier) = earlier {
            earlier.cancel(code::CANCELLED);
        }
        let mut bytes = upload.bytes.lock().await;
        let have = bytes.len() as u64;
        let offset = payload.resume(have, &mut &bytes[..]).await;
        let offset = offset.map_err(io::Error::other)?;
        // No more than `have`.
        bytes.truncate(usize::try_from(offset).unwrap_or(0));
        let rest = usize::try_from(total.saturating_sub(offset)).unwrap_or(0);
        // Doubling its capacity would take more memory than `total`.
        bytes.reserve_exact(rest);
        match payload.copy_to(&mut Slow::new(&mut bytes)).await {
            Ok(_) => {
                self.release(&upload);
                Ok(())
            }
            Err(error) => {
                // Otherwise what has arrived is good, and is kept.
                if matches!(error, PayloadError::HashMismatch { .. }) {
                    bytes.clear();
                }
                Err(io::Error::other(error))
            }
        }
    }

    /// The upload of this name, which is the latest then. The oldest that nobody receives give way
    /// to it. None, and nothing has changed, if the others that are received leave no room.
    fn claim(&self, name: &[u8], total: u64) -> Option<Arc<Upload>> {
        let mut places = lock(&self.0);
        let known = places.iter().position(|place| place.upload.name == name);
        // The one before may still receive.
        let total = total.max(known.map_or(0, |at| places[at].total));
        let received = || {
            let others = places.iter().filter(|place| place.upload.name != name);
            others.filter(|place| place.is_received())
        };
        if received().count() >= MAX_UPLOADS || bytes_of(received()) + total > MAX_BYTES {
            return None;
        }
        let upload = match known {
            Some(at) => places.remove(at).upload,
            None => Arc::new(Upload {
                name: name.to_vec(),
                ..Upload::default()
            }),
        };
        while places.len() >= MAX_UPLOADS || bytes_of(places.iter()) + total > MAX_BYTES {
            let idle = places.iter().position(|place| !place.is_received())?;
            places.remove(idle);
        }
        places.push(Place {
            upload: Arc::clone(&upload),
            total,
        });
        Some(upload)
    }

    /// The upload is complete: nothing of it is kept, unless another has begun to receive it.
    fn release(&self, upload: &Arc<Upload>) {
        let mut places = lock(&self.0);
        // The list holds it, and the one that has received it.
        if Arc::strong_count(upload) <= 2 {
            places.retain(|place| !Arc::ptr_eq(&place.upload, upload));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes [`RATE`] bytes in a second.
struct Slow<'a> {
    bytes: &'a mut Vec<u8>,
    slice: usize,
    ready: Pin<Box<Sleep>>,
}

impl<'a> Slow<'a> {
    fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self {
            bytes,
            slice: 0,
            ready: Box::pin(sleep_until(Instant::now())),
        }
    }
}

impl AsyncWrite for Slow<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.ready.as_mut().poll(cx));
        self.bytes.extend_from_slice(bytes);
        self.slice += bytes.len();
        if self.slice >= SLICE {
            let pause = Duration::from_secs_f64(self.slice as f64 / RATE);
            let next = self.ready.deadline().max(Instant::now() - pause) + pause;
            self.ready.as_mut().reset(next);
            self.slice = 0;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use anabranch::payload::{Rejection, SendError};
    use anabranch::{Config, Connection, Endpoint, Negotiation, Security};

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// The names that are kept, oldest first.
    fn names(uploads: &Uploads) -> Vec<Vec<u8>> {
        let places = lock(&uploads.0);
        places
            .iter()
            .map(|place| place.upload.name.clone())
            .collect()
    }

    #[test]
    fn the_oldest_upload_that_nobody_receives_gives_way() {
        let uploads = Uploads::default();
        let first = uploads.claim(b"0", 1).expect("room");
        for name in [b"1", b"2", b"3"] {
            drop(uploads.claim(name, 1).expect("room"));
        }
        let fifth = uploads.claim(b"4", 1).expect("in the place of 1");
        assert_eq!(names(&uploads), [b"0", b"2", b"3", b"4"]);
        drop((first, fifth));
        uploads.claim(b"2", 1).expect("it is kept");
        uploads.claim(b"5", 1).expect("in the place of 0");
        assert_eq!(names(&uploads), [b"3", b"4", b"2", b"5"]);
    }

    #[test]
    fn uploads_that_are_received_keep_their_room() {
        let uploads = Uploads::default();
        let held: Vec<_> = [b"0", b"1", b"2", b"3"]
            .iter()
            .map(|name| uploads.claim(*name, 1).expect("room"))
            .collect();
        assert!(uploads.claim(b"4", 1).is_none());
        assert_eq!(names(&uploads), [b"0", b"1", b"2", b"3"], "nothing is lost");
        // After a cut, the connection before is not known to be dead.
        uploads.claim(b"1", 1).expect("its own place");
        drop(held);
        uploads.claim(b"4", 1).expect("a place");
    }

    #[test]
    fn all_uploads_together_have_a_bound() {
        let uploads = Uploads::default();
        let kept = uploads.claim(b"kept", MAX_UPLOAD).expect("room");
        drop(kept);
        let large = uploads.claim(b"large", MAX_UPLOAD).expect("room");
        let small = uploads
            .claim(b"small", 1)
            .expect("in the place of the kept one");
        assert_eq!(names(&uploads), [&b"large"[..], b"small"]);
        assert!(uploads.claim(b"other", MAX_UPLOAD).is_none());
        assert!(uploads.claim(b"small", MAX_UPLOAD).is_some(), "exactly");
        drop((large, small));
        assert!(uploads.claim(b"other", MAX_UPLOAD).is_some());
    }

    #[test]
    fn a_complete_upload_goes_unless_another_receives_it() {
        let uploads = Uploads::default();
        let [done, again] = [(); 2].map(|()| uploads.claim(b"name", 1).expect("room"));
        uploads.release(&done);
        assert_eq!(names(&uploads).len(), 1);
        drop(done);
        uploads.release(&again);
        assert!(names(&uploads).is_empty());
    }

    /// A source that has its first byte, and no other.
    struct Stalled(Option<u8>);

    impl AsyncRead for Stalled {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.take() {
                Some(byte) => {
                    buffer.put_slice(&[byte]);
                    Poll::Ready(Ok(()))
                }
                None => Poll::Pending,
            }
        }
    }

    async fn connected(uploads: Uploads) -> (Endpoint, Connection) {
        let endpoint = || {
            let mut config = Config::default();
            config.negotiation = Negotiation::ChannelLabel;
            config.protocols = vec![UPLOAD.to_owned()];
            Endpoint::builder()
                .security(Security::CertificateHash)
                .config(config)
                .bind((LOCALHOST, 0))
        };
        let [listener, dialler] = [endpoint().await.unwrap(), endpoint().await.unwrap()];
        let address = listener.addresses()[0].to_string();
        tokio::spawn(async move {
            let connection = listener.accept().await.expect("a dial").await;
            let connection = connection.expect("it connects");
            while let Ok(Some(substream)) = connection.accept().await {
                let uploads = uploads.clone();
                tokio::spawn(async move { uploads.receive(substream).await });
            }
        });
        let connection = dialler.connect(&address.parse().expect("an address")).await;
        (dialler, connection.expect("it connects"))
    }

    #[tokio::test]
    async fn the_sender_of_a_fifth_upload_learns_why_it_is_refused() {
        let uploads = Uploads::default();
        let (_endpoint, connection) = connected(uploads.clone()).await;
        let sender = async |name: &'static str| {
            let substream = connection.open(UPLOAD).await.expect("a substream");
            let sender = Sender::new(substream, PayloadConfig::default()).expect("the default");
            sender.metadata(name)
        };
        for name in ["0", "1", "2", "3"] {
            let sender = sender(name).await;
            tokio::spawn(async move { sender.send_reader(Stalled(Some(1)), Some(2)).await });
        }
        while names(&uploads).len() < MAX_UPLOADS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let refused = sender("4")
            .await
            .send_reader(Stalled(Some(1)), Some(2))
            .await;
        let rejection = SendError::Rejected(Rejection::TooMany);
        assert_eq!(refused.unwrap_err().to_string(), rejection.to_string());
        assert_eq!(names(&uploads).len(), MAX_UPLOADS);
    }
}
