//! Random operations on many substreams of one connection at once.
//!
//! Small messages and large ones, flushed or not; readers that are late, stop or reset; resets in mid-flight; drops without
//! a finish; more opens at once than the peer takes. The oracle: what is read is what was written, in order; what
//! was confirmed was readable to its end; an end in order is the end of all; nothing hangs, and the connection lives.

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

/// Substreams of one storm, all opened at once; and how many the other side takes: what may be under way before
/// it has told, and no more.
const SUBSTREAMS: usize = 100;
const TAKEN_AT_ONCE: usize = 64;

/// How a writer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finish,
    /// After all was written.
    Drop,
    /// After this many bytes.
    Reset(usize),
}

/// What a reader does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    All,
    /// Stops after this many bytes.
    Stop(usize),
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
    late: Duration,
    reading: Reading,
}

impl Plan {
    fn random(rng: &mut StdRng) -> Self {
        let chunk = [1, 20, 1000, 5000, 40_000][rng.random_range(0..5)];
        let longest = (chunk * 300).min(200_000);
        let length = rng.random_range(0..=longest);
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
            late: Duration::from_millis([0, 0, 0, 20, 100][rng.random_range(0..5)]),
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
        let last = match self.end {
            End::Reset(after) => after,
            End::Finish | End::Drop => self.length,
        };
        let mut written = 0;
        while written < last {
            let next = (written + self.chunk).min(last);
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

    /// Returns how much was read, and whether that was all that there was.
    async fn read(&self, reader: &mut ReadHalf) -> (usize, io::Result<bool>) {
        sleep(self.late).await;
        let most = match self.reading {
            Reading::All => usize::MAX,
            Reading::Stop(after) | Reading::Reset(after) => after,
        };
        let mut read = 0;
        while read < most {
            match reader.read_chunk((most - read).min(30_000)).await {
                Ok(Some(bytes)) => {
                    let expected = self.bytes(read, read + bytes.len());
                    assert!(bytes == expected, "wrong bytes behind {read}");
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

/// What the end of one direction says.
type Written = io::Result<Option<Finished>>;

/// Both directions of one substream at one of its ends.
async fn play(substream: Substream, out: Plan, back: Plan) -> (Written, (usize, io::Result<bool>)) {
    let (mut reader, writer) = substream.into_split();
    tokio::join!(out.write(writer), back.read(&mut reader))
}

/// Checks one direction, of which both ends are known.
fn check(
    plan: &Plan,
    other: &Plan,
    written: &Written,
    read: &(usize, io::Result<bool>),
    story: &str,
) {
    if plan.resets() || other.resets() {
        // The content was checked as it came; what a reset takes away is anybody's guess.
        return;
    }
    let (count, end) = read;
    if plan.reading == Reading::All {
        assert!(
            matches!(end, Ok(true)),
            "{story}: {count} bytes, then {end:?}, {written:?}"
        );
        assert_eq!(*count, plan.length, "{story}: {written:?}");
    }
    match written {
        Ok(Some(finished)) => assert_eq!(*finished, Finished::Acked, "{story}"),
        Ok(None) => {}
        // Who stops reading ends the writer, and nobody else does.
        Err(error) => assert!(
            matches!(plan.reading, Reading::Stop(_)),
            "{story}: {error} {read:?}"
        ),
    }
}

/// Runs random operations between the ends of a connection, `a` and `b`. `a` opens all substreams.
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
    // Closed when the last task at that end is done.
    let (alive, mut all_done) = mpsc::channel::<()>(1);
    let accepting = tokio::spawn({
        let (b, plans) = (b.clone(), plans.clone());
        async move {
            while let Some(mut substream) = b.accept().await.expect("the connection lives") {
                let Ok(number) = substream.read_u16().await else {
                    continue;
                };
                let number = usize::from(number);
                let [out, back] = plans[number];
                let report = expected[number].take().expect("once");
                let alive = alive.clone();
                tokio::spawn(async move {
                    let _ = report.send(play(substream, back, out).await);
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
                let mut substream = a.open("").await.expect("room");
                substream.write_u16(number).await?;
                io::Result::Ok(play(substream, out, back).await)
            })
        })
        .collect();
    for (number, (opener, result)) in openers.into_iter().zip(results).enumerate() {
        let [out, back] = &plans[number];
        let story = format!("seed {seed}, substream {number}: {out:?} {back:?}");
        let Ok(here) = tokio::time::timeout(super::LIMIT, opener).await else {
            panic!("{story} hangs: {:?} {:?}", a.stats(), b.stats());
        };
        let here = here.expect("no panic");
        if out.resets() || back.resets() {
            // The reset may have taken the number with it, so that the other end does not know which one this is.
            continue;
        }
        let there = within(&story, result).await;
        let (here, there) = (here.expect(&story), there.expect(&story));
        check(out, back, &here.0, &there.1, &format!("{story}: there"));
        check(back, out, &there.0, &here.1, &format!("{story}: back"));
    }
    assert!(!accepting.is_finished(), "seed {seed}");
    accepting.abort();
    let _ = accepting.await;
    within("the tasks of that end", all_done.recv()).await;
    assert_eq!(
        (a.close_reason(), b.close_reason()),
        (None, None),
        "seed {seed}"
    );
}

/// Storms from some seeds, or from as many as `ANABRANCH_SEEDS` says.
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
        config.max_inbound_substreams = TAKEN_AT_ONCE;
        let pair = Pair::with(&factory, config).await;
        storm(seed, &pair.a, &pair.b).await;
        pair.finish().await;
    }
}
