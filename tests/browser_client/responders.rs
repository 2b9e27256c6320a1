//! What the listener does with each protocol that a page opens.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anabranch::payload::{self, PayloadConfig, Sender};
use anabranch::{CloseOutcome, Connection, Finished, Substream, SubstreamError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::failures::Failures;

pub(crate) const PROTOCOLS: [&str; 18] = [
    "/bench/1.0.0",
    "/call-back",
    "/close",
    "/count",
    "/die",
    "/download",
    "/drain",
    "/echo",
    "/get",
    "/hold",
    "/put",
    "/release",
    "/reset",
    "/see-end",
    "/see-reset",
    "/see-stop",
    "/stop",
    "/upload",
];

/// The codes with which this side resets and stops.
const RESET_CODE: u32 = 77;
const STOP_CODE: u32 = 78;

/// The content of every test: byte i is i % 251.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// Serves a connection until it has ended, and notes what the page can not see.
pub(crate) async fn serve(connection: Connection, notes: Failures) {
    let mut responding = JoinSet::new();
    let released = Arc::new(Notify::new());
    let store = Arc::new(Mutex::new(Vec::new()));
    while let Ok(Some(substream)) = connection.accept().await {
        let (connection, notes) = (connection.clone(), notes.clone());
        let released = Arc::clone(&released);
        let store = Arc::clone(&store);
        responding.spawn(async move {
            let protocol = substream.protocol().expect("a label").to_owned();
            if let Err(error) =
                respond(&protocol, substream, &connection, &notes, &released, &store).await
            {
                notes.add(&protocol, &error);
            }
        });
    }
    while let Some(done) = responding.join_next().await {
        done.expect("responders do not panic");
    }
    notes.add("ended", &connection.closed().await);
}

async fn respond(
    protocol: &str,
    mut substream: Substream,
    connection: &Connection,
    notes: &Failures,
    released: &Notify,
    store: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    match protocol {
        "/bench/1.0.0" => {
            let (up, down) = (substream.read_u64().await?, substream.read_u64().await?);
            assert_eq!(read_pattern(&mut substream).await?, up);
            write_pattern(&mut substream, down).await?;
        }
        "/call-back" => {
            let mut request = Vec::new();
            substream.read_to_end(&mut request).await?;
            let called = connection.open("/from-listener").await;
            let mut called = called.map_err(io::Error::other)?;
            let content = pattern(100_000);
            called.write_all(&content).await?;
            finish(&mut called).await?;
            let mut back = Vec::new();
            called.read_to_end(&mut back).await?;
            assert_eq!(back, content, "the page echoes");
        }
        "/close" => {
            connection.close_with(70_000, "maintenance").await;
            return Ok(());
        }
        "/count" => {
            let length = read_pattern(&mut substream).await?;
            notes.add("arrived", &length);
            // The page has stopped reading.
            return Ok(());
        }
        "/die" => {
            // Whoever waits for it ends the process, or its network.
            notes.add("dying", &"without a word");
            connection.closed().await;
            return Ok(());
        }
        "/drain" => {
            let drained = connection.drain(Duration::from_secs(10));
            let whole = async {
                let mut rest = Vec::new();
                substream.read_to_end(&mut rest).await?;
                assert_eq!(rest, [1, 2, 3]);
                finish(&mut substream).await
            };
            let (cut, whole) = tokio::join!(drained, whole);
            assert_eq!(cut, 0, "nothing is cut off");
            return whole;
        }
        "/download" => {
            let length = substream.read_u64().await?;
            write_pattern(&mut substream, length).await?;
        }
        "/echo" => {
            let (mut read, mut write) = tokio::io::split(&mut substream);
            tokio::io::copy(&mut read, &mut write).await?;
        }
        "/get" => {
            let stored = store.lock().await.clone();
            let sender = Sender::new(substream, PayloadConfig::default());
            let sender = sender.map_err(io::Error::other)?.metadata("from-listener");
            let sent = sender.send_resumable(io::Cursor::new(stored)).await;
            let sent = sent.map_err(io::Error::other)?;
            notes.add("sent from", &sent.resumed_from);
            return Ok(());
        }
        "/put" => {
            let payload = payload::receive(substream).await;
            let mut payload = payload.map_err(io::Error::other)?;
            let mut stored = store.lock().await;
            let name = String::from_utf8_lossy(payload.metadata()).into_owned();
            let have = stored.len() as u64;
            let from = payload
                .resume(have, &mut io::Cursor::new(stored.clone()))
                .await;
            stored.truncate(from.map_err(io::Error::other)? as usize);
            let mut rest = Vec::new();
            let received = payload.copy_to(&mut rest).await;
            // What has arrived is valid after an error too.
            stored.extend(rest);
            let received = received.map_err(io::Error::other)?;
            notes.add(
                "received",
                &format!("{name} from {}", received.resumed_from),
            );
            return Ok(());
        }
        "/hold" => {
            substream.write_u8(1).await?;
            tokio::select! {
                () = released.notified() => {}
                // Reset by the page, and no more than that.
                _ = connection.closed() => return Ok(()),
            }
            let mut held = Vec::new();
            substream.read_to_end(&mut held).await?;
            assert_eq!(held, pattern(held.len()));
            substream.write_u64(held.len() as u64).await?;
        }
        "/release" => {
            // A drop before FIN would stop the page, whose close fails then.
            substream.read_to_end(&mut Vec::new()).await?;
            released.notify_waiters();
        }
        "/reset" => {
            substream.read_u8().await?;
            substream.reset(RESET_CODE);
            return Ok(());
        }
        "/see-end" => {
            let chunk = pattern(251 * 1024);
            while substream.write_all(&chunk).await.is_ok() {}
            notes.add("left", &"in the middle");
            return Ok(());
        }
        "/see-reset" => {
            substream.write_u8(1).await?;
            let error = substream.read_to_end(&mut Vec::new()).await;
            let error = error.expect_err("the page resets it");
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            match cause {
                Some(SubstreamError::ResetByPeer(code)) => notes.add("reset", &format!("{code:?}")),
                _ => return Err(error),
            }
            return Ok(());
        }
        "/see-stop" => {
            let chunk = pattern(251 * 1024);
            while substream.write_all(&chunk).await.is_ok() {}
            match substream.stopped().await {
                CloseOutcome::Stopped(code) => notes.add("stopped", &format!("{code:?}")),
                other => return Err(io::Error::other(format!("{other}"))),
            }
            substream.read_to_end(&mut Vec::new()).await?;
            return Ok(());
        }
        "/stop" => {
            substream.read_u8().await?;
            substream.stop(STOP_CODE);
        }
        "/upload" => {
            let length = read_pattern(&mut substream).await?;
            substream.write_u64(length).await?;
        }
        other => return Err(io::Error::other(format!("unknown protocol {other}"))),
    }
    finish(&mut substream).await
}

async fn write_pattern(substream: &mut Substream, length: u64) -> io::Result<()> {
    let pattern = pattern(251 * 1024);
    let mut sent = 0;
    while sent < length {
        let part = (length - sent).min(pattern.len() as u64);
        substream.write_all(&pattern[..part as usize]).await?;
        sent += part;
    }
    Ok(())
}

/// Reads to FIN, checks every byte, and returns how many there were.
async fn read_pattern(substream: &mut Substream) -> io::Result<u64> {
    let pattern = pattern(251 * 1024);
    let mut length = 0;
    while let Some(chunk) = substream.read_chunk(16 * 1024).await? {
        let start = length % 251;
        assert_eq!(chunk, pattern[start..start + chunk.len()], "at {length}");
        length += chunk.len();
    }
    Ok(length as u64)
}

async fn finish(substream: &mut Substream) -> io::Result<()> {
    match substream.finish().await {
        Ok(Finished::Acked) => Ok(()),
        other => Err(io::Error::other(format!("finished as {other:?}"))),
    }
}
