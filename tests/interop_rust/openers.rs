//! The cases on a connection that this side dialled.

use std::future::Future;
use std::io;
use std::time::Duration;

use anabranch::{Connection, FinishError, Finished, Substream};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::responders::{HALF_CLOSE_BYTES, STALLED, pattern};

/// Time limit of each case.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a reader stalls.
const STALL: Duration = Duration::from_millis(500);

/// A connection to a peer, and how write halves to that peer end.
pub(crate) struct Opener {
    pub(crate) connection: Connection,
    pub(crate) finished: Finished,
    /// How a substream reports that the peer has given up.
    pub(crate) given_up: io::ErrorKind,
}

impl Opener {
    async fn open(&self, protocol: &str) -> Substream {
        let substream = self.connection.open(protocol).await;
        substream.unwrap_or_else(|error| panic!("opening {protocol}: {error}"))
    }

    /// Writes `content` and finishes while it reads to the end. Returns what it read.
    async fn exchange(&self, protocol: &str, content: &[u8]) -> Vec<u8> {
        let (mut read, mut write) = self.open(protocol).await.into_split();
        let writing = async {
            write.write_all(content).await.expect("a write");
            let outcome = write.finish().await;
            // A peer that answers without a request may have stopped reading before there is
            // anything to read.
            let was_stopped = matches!(outcome, Err(FinishError::Stopped(_)));
            assert!(
                outcome == Ok(self.finished) || (content.is_empty() && was_stopped),
                "{protocol}: {outcome:?}"
            );
        };
        let mut got = Vec::new();
        let reading = async { read.read_to_end(&mut got).await.expect("an orderly end") };
        within(protocol, async { tokio::join!(writing, reading) }).await;
        got
    }

    pub(crate) async fn echo(&self, length: usize) {
        let content = pattern(length);
        let got = self.exchange("/echo/1.0.0", &content).await;
        assert!(got == content, "{} of {length} bytes came back", got.len());
    }

    pub(crate) async fn bench(&self, substreams: usize, up: usize, down: usize) {
        let content = [header(up, down), pattern(up)].concat();
        let all = (0..substreams).map(|_| self.exchange("/bench/1.0.0", &content));
        for got in join_all(all).await {
            assert!(got == pattern(down), "{} of {down} bytes came", got.len());
        }
    }

    /// Finishes writing before it receives anything.
    pub(crate) async fn half_close(&self) {
        let mut substream = self.open("/half-close/1.0.0").await;
        let case = async {
            substream.write_all(&pattern(1000)).await.expect("a write");
            let outcome = substream.finish().await.expect("intact");
            assert_eq!(outcome, self.finished);
            let mut got = Vec::new();
            substream.read_to_end(&mut got).await.expect("the end");
            assert!(got == pattern(HALF_CLOSE_BYTES), "{} bytes", got.len());
        };
        within("half-close", case).await;
    }

    pub(crate) async fn reset(&self) {
        let mut substream = self.open("/reset-me/1.0.0").await;
        let case = async {
            substream.write_all(&pattern(1024)).await.expect("a write");
            substream.read_u8().await.expect("an answer");
            substream.reset(9);
        };
        within("reset-me", case).await;
        let seen = self.exchange("/reset-result/1.0.0", &[]).await;
        assert_eq!(seen, [1], "the peer saw the reset");
    }

    pub(crate) async fn be_reset(&self) {
        let mut substream = self.open("/reset-you/1.0.0").await;
        let case = async {
            substream.write_all(&[1]).await.expect("a write");
            let error = substream.read_u8().await.expect_err("it is no end");
            assert_eq!(error.kind(), self.given_up);
        };
        within("reset-you", case).await;
    }

    async fn open_stalled(&self, up: usize, hold: Duration) -> Substream {
        let mut substream = self.open("/stall/1.0.0").await;
        let hold = usize::try_from(hold.as_millis()).expect("a short time");
        let case = async {
            substream.write_all(&header(up, hold)).await?;
            substream.read_u8().await
        };
        let answer = within("stall", case).await.expect("an answer");
        assert_eq!(answer, STALLED);
        substream
    }

    /// The peer does not read for a while; everything arrives in the end.
    pub(crate) async fn write_to_a_stalled_reader(&self, up: usize) {
        let mut substream = self.open_stalled(up, STALL).await;
        let case = async {
            substream.write_all(&pattern(up)).await.expect("a write");
            let outcome = substream.finish().await.expect("intact");
            assert_eq!(outcome, self.finished);
            assert_eq!(substream.read_u64().await.expect("a count"), up as u64);
        };
        within("stall up", case).await;
        drop(substream);
        self.echo(1000).await;
    }

    /// The peer does not read, and gives up.
    pub(crate) async fn write_until_reset(&self, up: usize) {
        // So long that it gives up before it continues to read, however slow the machine is.
        let mut substream = self.open_stalled(up, LIMIT).await;
        let content = pattern(up);
        let written = within("a write of too much", substream.write_all(&content)).await;
        let error = match written {
            Err(error) => error,
            // Then the error comes in place of the count.
            Ok(()) => within("the reset", substream.read_u64())
                .await
                .expect_err("it is reset"),
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    /// This side does not read for a while. Other substreams continue meanwhile, and everything
    /// arrives in the end.
    pub(crate) async fn stall(&self, down: usize) {
        let mut substream = self.open("/bench/1.0.0").await;
        let case = async {
            substream
                .write_all(&header(0, down))
                .await
                .expect("a write");
            let outcome = substream.finish().await.expect("intact");
            assert_eq!(outcome, self.finished);
            let (_, ()) = tokio::join!(sleep(STALL), self.echo(1000));
            let mut got = Vec::new();
            substream.read_to_end(&mut got).await.expect("the end");
            assert!(got == pattern(down), "{} of {down} bytes came", got.len());
        };
        within("stall down", case).await;
    }
}

fn header(first: usize, second: usize) -> Vec<u8> {
    [first, second]
        .iter()
        .flat_map(|number| (*number as u64).to_be_bytes())
        .collect()
}

async fn within<T>(what: &str, case: impl Future<Output = T>) -> T {
    let done = timeout(LIMIT, case).await;
    done.unwrap_or_else(|_| panic!("{what} is not done within {LIMIT:?}"))
}
