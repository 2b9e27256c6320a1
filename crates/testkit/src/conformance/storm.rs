//! Random operations on many concurrent substreams of one connection.
//!
//! Small and large messages, flushed or not; readers that start late, stop or reset; resets with
//! data in flight; drops without a finish; more opens at once than the peer accepts.
//!
//! The oracle: bytes are read as written and in order; acknowledged data was readable to its end;
//! an orderly end comes after all data; nothing hangs, and the connection stays open.

use std::io;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::connections::{Pair, within};
use anabranch::carrier::Carrier;
use anabranch::connection::Negotiation;
use anabranch::{Config, Connection, Finished, ReadHalf, Substream, WriteHalf};

/// Substreams of one storm, all opened at once.
const SUBSTREAMS: usize = 100;

/// `Config::max_inbound_substreams`: as many as may be opened before the peer has advertised its
/// limit.
const MAX_INBOUND: usize = 64;

/// How a writer ends its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finish,
    /// Drops its half after writing everything.
    Drop,
    /// Resets after this many bytes.
    Reset(usize),
}

/// How much a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    All,
    /// Stops after this many bytes.
    Stop(usize),
    /// Resets after this many bytes.
    Reset(usize),
}

/// One direction of a substream.
#[derive(Debug, Clone, Copy)]
struct Plan {
    salt: u8,
    length: usize,
    chunk: usize,
    flush: bool,
    end: End,
    /// Delay before the first read.
    delay: Duration,
    reading: Reading,
}

impl Plan {
    fn random(rng: &mut StdRng) -> Self {
        let chunk = [1, 20, 1000, 5000, 40_000][rng.random_range(0..5)];
        let max_length = (chunk * 300).min(200_000);
        let length = rng.random_range(0..=max_length);
        let part = rng.random_range(0..=length);
        Self {
            salt: rng.random(),
            length,
            chunk,
            flush: rng.random(),
            end: match rng.random_range(0..10) {
                0 => End::Reset(part),
                1 | 2 => End::Drop,
                _ => End::Finish,
            },
            delay: Duration::from_millis([0, 0, 0, 20, 100][rng.random_range(0..5)]),
            reading: match rng.random_range(0..10) {
                0 => Reading::Reset(part),
                1 => Reading::Stop(part),
                _ => Reading::All,
            },
        }
    }

    fn resets(&self) -> bool {
        matches!(self.end, End::Reset(_)) || matches!(self.reading, Reading::Reset(_))
    }

    fn bytes(&self, from: usize, to: usize) -> Vec<u8> {
        let salt = usize::from(self.salt);
        (from..to).map(|at| ((at + salt) % 251) as u8).collect()
    }

    async fn write(&self, mut writer: WriteHalf) -> io::Result<Option<Finished>> {
        let length = match self.end {
            End::Reset(after) => after,
            End::Finish | End::Drop => self.length,
        };
        let mut written = 0;
        while written < length {
            let next = (written + self.chunk).min(length);
            writer.write_all(&self.bytes(written, next)).await?;
            if self.flush {
                writer.flush().await?;
            }
            written = next;
        }
        match self.end {
            End::Reset(_) => {
                writer.reset(7);
                Ok(None)
            }
            End::Drop => Ok(None),
            End::Finish => Ok(Some(writer.finish().await?)),
        }
    }

    /// Returns the number of bytes read, and whether the end of the stream was reached.
    async fn read(&self, reader: &mut ReadHalf) -> (usize, io::Result<bool>) {
        sleep(self.delay).await;
        let max = match self.reading {
            Reading::All => usize::MAX,
            Reading::Stop(after) | Reading::Reset(after) => after,
        };
        let mut read = 0;
        while read < max {
            match reader.read_chunk((max - read).min(30_000)).await {
                Ok(Some(bytes)) => {
                    let expected = self.bytes(read, read + bytes.len());
                    assert!(bytes == expected, "wrong bytes at offset {read}");
                    read += bytes.len();
                }
                Ok(None) => return (read, Ok(true)),
                Err(error) => return (read, Err(error)),
            }
        }
        match self.reading {
            Reading::Reset(_) => reader.reset(9),
            _ => reader.stop(8),
        }
        (read, Ok(false))
    }
}

/// Outcome of a writer.
type Written = io::Result<Option<Finished>>;

/// Runs both directions of a substream on one side.
async fn run(substream: Substream, out: Plan, back: Plan) -> (Written, (usize, io::Result<bool>)) {
    let (mut reader, writer) = substream.into_split();
    tokio::join!(out.write(writer), back.read(&mut reader))
}

/// Checks one direction by the outcomes of its writer and its reader.
fn check(
    plan: &Plan,
    other: &Plan,
    written: &Written,
    read: &(usize, io::Result<bool>),
    context: &str,
) {
    if plan.resets() || other.resets() {
        // The bytes were checked when they were read; how many a reset discards is undefined.
        return;
    }
    let (count, end) = read;
    if plan.reading == Reading::All {
        assert!(
            matches!(end, Ok(true)),
            "{context}: {count} bytes, then {end:?}, {written:?}"
        );
        assert_eq!(*count, plan.length, "{context}: {written:?}");
    }
    match written {
        Ok(Some(finished)) => assert_eq!(*finished, Finished::Acked, "{context}"),
        Ok(None) => {}
        // Only a reader that stops makes the writer fail.
        Err(error) => assert!(
            matches!(plan.reading, Reading::Stop(_)),
            "{context}: {error} {read:?}"
        ),
    }
}

/// Runs random operations between two sides of a connection, of which `a` opens all substreams.
///
/// Every choice follows from `seed`. The caller runs both drivers.
///
/// # Panics
/// If the oracle (see the case [`random_operations_lose_nothing`]) is violated: wrong, missing or
/// reordered bytes, a substream that hangs for [`TIMEOUT`](super::TIMEOUT), or a connection that
/// closes.
pub async fn storm(seed: u64, a: &Connection, b: &Connection) {
    let mut rng = StdRng::seed_from_u64(seed);
    let plans: Vec<[Plan; 2]> = (0..SUBSTREAMS)
        .map(|_| [Plan::random(&mut rng), Plan::random(&mut rng)])
        .collect();
    let (mut expected, mut results) = (Vec::new(), Vec::new());
    for _ in &plans {
        let (sender, receiver) = oneshot::channel();
        expected.push(Some(sender));
        results.push(receiver);
    }
    // Closed when the last task of `b` has ended.
    let (alive, mut all_done) = mpsc::channel::<()>(1);
    let accepting = tokio::spawn({
        let (b, plans) = (b.clone(), plans.clone());
        async move {
            while let Some(mut substream) = b.accept().await.expect("the connection is open") {
                let Ok(number) = substream.read_u16().await else {
                    continue;
                };
                let number = usize::from(number);
                let [out, back] = plans[number];
                let report = expected[number].take().expect("once");
                let alive = alive.clone();
                tokio::spawn(async move {
                    let _ = report.send(run(substream, back, out).await);
                    drop(alive);
                });
            }
        }
    });
    let openers: Vec<_> = (0_u16..)
        .zip(plans.clone())
        .map(|(number, [out, back])| {
            let a = a.clone();
            tokio::spawn(async move {
                let mut substream = a.open("").await.expect("the connection is open");
                substream.write_u16(number).await?;
                io::Result::Ok(run(substream, out, back).await)
            })
        })
        .collect();
    for (number, (opener, result)) in openers.into_iter().zip(results).enumerate() {
        let [out, back] = &plans[number];
        let context = format!("seed {seed}, substream {number}: {out:?} {back:?}");
        let Ok(here) = tokio::time::timeout(super::TIMEOUT, opener).await else {
            panic!("{context} hangs: {:?} {:?}", a.stats(), b.stats());
        };
        let here = here.expect("no panic");
        if out.resets() || back.resets() {
            // The reset may have discarded the number, without which `b` cannot report its outcome.
            continue;
        }
        let there = within(&context, result).await;
        let (here, there) = (here.expect(&context), there.expect(&context));
        check(out, back, &here.0, &there.1, &format!("{context}: a to b"));
        check(back, out, &there.0, &here.1, &format!("{context}: b to a"));
    }
    assert!(!accepting.is_finished(), "seed {seed}");
    accepting.abort();
    let _ = accepting.await;
    within("the tasks of b", all_done.recv()).await;
    assert_eq!(
        (a.close_reason(), b.close_reason()),
        (None, None),
        "seed {seed}"
    );
}

/// Random operations on 100 concurrent substreams lose, reorder and truncate nothing.
///
/// Runs [`storm`] with 3 seeds, or as many as the environment variable `ANABRANCH_SEEDS` sets.
pub async fn random_operations_lose_nothing<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let seeds = std::env::var("ANABRANCH_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(3);
    for seed in 0..seeds {
        let mut config = Config::default();
        config.negotiation = Negotiation::None;
        config.max_inbound_substreams = MAX_INBOUND;
        let pair = Pair::with(&factory, config).await;
        storm(seed, &pair.a, &pair.b).await;
        pair.finish().await;
    }
}
