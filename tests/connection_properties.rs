//! Row H-14: random operations on both sides over a hostile carrier, checked against a model of
//! what each reader may see, and against the rules of the wire (`Log::check`).
//!
//! `ANABRANCH_SEEDS` sets the number of runs; the seed of each is printed.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anabranch::{Config, FinAckPolicy, FinishError, Finished, Substream};
use anabranch_testkit::memory::MemoryConfig;
use common::seeds::seeds;
use common::{Pair, config, within};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

const OPERATIONS: usize = 150;
const MAX_SUBSTREAMS: usize = 12;
/// Within every window of these runs, so that a writer can finish without its reader.
const MAX_WRITTEN: usize = 60_000;

/// One end of a substream, and the actions of its application.
#[derive(Default)]
struct End {
    handle: Option<Substream>,
    written: usize,
    read: usize,
    shut: bool,
    stopped: bool,
    at_end: bool,
}

/// The model of a substream; the opener's end is first.
#[derive(Default)]
struct Sub {
    opener: usize,
    reset: bool,
    ends: [End; 2],
}

struct Run {
    rng: StdRng,
    pair: Pair,
    subs: BTreeMap<u64, Sub>,
    seed: u64,
}

/// The byte that this side writes at an offset.
fn byte(id: u64, side: usize, offset: usize) -> u8 {
    ((offset * 31 + offset / 251 + side * 101) as u64 + id * 7) as u8
}

fn random_config(rng: &mut StdRng) -> Config {
    let mut config = config();
    config.send_buffer = rng.random_range(1..100_000);
    config.receive_window = rng.random_range(MAX_WRITTEN as u32..1 << 20);
    config.max_inbound_substreams = rng.random_range(MAX_SUBSTREAMS..256);
    if rng.random_bool(0.2) {
        config.fin_ack = FinAckPolicy::AfterOwnFin;
    }
    config
}

impl Run {
    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..8 => self.open().await,
            8..20 => self.accept(0).await,
            20..32 => self.accept(1).await,
            32..40 => {
                let time = self.rng.random_range(0..60);
                sleep(Duration::from_millis(time)).await;
            }
            // A carrier that refuses everything for a while, including flags.
            40 => self.pair.gates[0].shut(),
            41 => self.pair.gates[1].shut(),
            42..46 => self.pair.gates.iter().for_each(|gate| gate.open()),
            choice => self.act(choice),
        }
    }

    async fn open(&mut self) {
        if self.subs.len() >= MAX_SUBSTREAMS {
            return;
        }
        let opener = self.rng.random_range(0..2);
        let connection = [&self.pair.a, &self.pair.b][opener];
        let handle = within("open", connection.open("")).await.unwrap();
        let mut sub = Sub {
            opener,
            ..Sub::default()
        };
        let id = handle.id();
        sub.ends[opener].handle = Some(handle);
        assert!(self.subs.insert(id, sub).is_none(), "{id} is used twice");
    }

    async fn accept(&mut self, side: usize) {
        let connection = [&self.pair.a, &self.pair.b][side];
        if let Ok(accepted) = timeout(Duration::from_millis(1), connection.accept()).await {
            let handle = accepted.unwrap().expect("the connection is open");
            let sub = self.subs.get_mut(&handle.id()).expect("it was opened");
            assert_ne!(sub.opener, side);
            sub.ends[side].handle = Some(handle);
        }
    }

    /// One operation on one end, polled once.
    fn act(&mut self, choice: u32) {
        if self.subs.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.subs.len());
        let side = self.rng.random_range(0..2);
        let size = self.rng.random_range(1..20_000);
        let code = self.rng.random_range(0..5);
        let (id, sub) = self.subs.iter_mut().nth(index).expect("within the length");
        let id = *id;
        if sub.ends[side].handle.is_none() {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        match choice {
            46..65 => write(id, sub, side, size, &mut cx),
            65..84 => read(id, sub, side, size, &mut cx),
            84..88 => {
                let end = &mut sub.ends[side];
                let handle = end.handle.as_mut().expect("looked at above");
                let _ = AsyncWrite::poll_flush(Pin::new(handle), &mut cx);
            }
            88..92 => {
                let end = &mut sub.ends[side];
                end.shut = true;
                let handle = end.handle.as_mut().expect("looked at above");
                let _ = AsyncWrite::poll_shutdown(Pin::new(handle), &mut cx);
            }
            92..94 => {
                let end = &mut sub.ends[side];
                end.stopped = true;
                end.handle.as_mut().expect("looked at above").stop(code);
            }
            94..95 => {
                sub.reset = true;
                let handle = sub.ends[side].handle.as_ref().expect("looked at above");
                handle.reset(code);
            }
            _ => {
                let end = &mut sub.ends[side];
                (end.shut, end.stopped) = (true, true);
                let (read, write) = end.handle.take().expect("looked at above").into_split();
                if choice.is_multiple_of(2) {
                    drop(read);
                    drop(write);
                } else {
                    drop(write);
                    drop(read);
                }
            }
        }
    }

    /// Ends all remaining substreams, by closing and reading to the end, or by dropping.
    async fn wind_down(&mut self) {
        self.pair.gates.iter().for_each(|gate| gate.open());
        // Substreams in transit arrive.
        sleep(Duration::from_millis(200)).await;
        for side in [0, 1] {
            for _ in 0..MAX_SUBSTREAMS {
                self.accept(side).await;
            }
        }
        let graceful = self.rng.random_bool(0.7);
        for (id, mut sub) in std::mem::take(&mut self.subs) {
            if graceful {
                for side in [0, 1] {
                    let end = &mut sub.ends[side];
                    if let Some(handle) = &mut end.handle {
                        end.shut = true;
                        let mut cx = Context::from_waker(Waker::noop());
                        let _ = AsyncWrite::poll_shutdown(Pin::new(handle), &mut cx);
                    }
                }
                for side in [0, 1] {
                    read_to_end(id, &mut sub, side).await;
                }
                for side in [0, 1] {
                    finish(id, &mut sub, side).await;
                }
            }
        }
    }
}

fn write(id: u64, sub: &mut Sub, side: usize, size: usize, cx: &mut Context<'_>) {
    let (mine, reader) = if side == 0 { (0, 1) } else { (1, 0) };
    let reader_stopped = sub.ends[reader].stopped;
    let end = &mut sub.ends[mine];
    let size = size.min(MAX_WRITTEN - end.written);
    let data: Vec<u8> = (0..size).map(|i| byte(id, side, end.written + i)).collect();
    let handle = end.handle.as_mut().expect("the caller looked");
    match AsyncWrite::poll_write(Pin::new(handle), cx, &data) {
        Poll::Ready(Ok(length)) => {
            assert!(
                !end.shut || size == 0,
                "{id}/{side}: written behind a shutdown"
            );
            end.written += length;
        }
        Poll::Ready(Err(error)) => {
            let expected = match error.kind() {
                ErrorKind::BrokenPipe => end.shut || reader_stopped || sub.reset,
                ErrorKind::ConnectionReset => sub.reset,
                _ => false,
            };
            assert!(expected, "{id}/{side}: {error:?}");
        }
        Poll::Pending => {}
    }
}

/// Checks the result of a read.
fn took(id: u64, sub: &mut Sub, side: usize, result: std::io::Result<&[u8]>) {
    let writer = 1 - side;
    match result {
        Ok([]) => {
            let stopped = sub.ends[side].stopped;
            let (writer_end, end) = (&sub.ends[writer], &sub.ends[side]);
            assert!(
                writer_end.shut || stopped || end.at_end,
                "{id}/{side}: an end of nothing"
            );
            // A writer that was stopped may lose data, and ends.
            if !stopped {
                let (read, written) = (end.read, writer_end.written);
                assert_eq!(read, written, "{id}/{side}: end of stream in the middle");
            }
            sub.ends[side].at_end = true;
        }
        Ok(bytes) => {
            let end = &mut sub.ends[side];
            assert!(!end.at_end, "{id}/{side}: data behind the end");
            for (i, got) in bytes.iter().enumerate() {
                assert_eq!(
                    *got,
                    byte(id, writer, end.read + i),
                    "{id}/{side} at {}",
                    end.read + i
                );
            }
            end.read += bytes.len();
            assert!(end.read <= sub.ends[writer].written);
        }
        Err(error) => {
            assert!(sub.reset, "{id}/{side}: {error:?}");
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                ),
                "{id}/{side}: {error:?}"
            );
        }
    }
}

fn read(id: u64, sub: &mut Sub, side: usize, size: usize, cx: &mut Context<'_>) {
    let mut buffer = vec![0; size];
    let mut out = ReadBuf::new(&mut buffer);
    let handle = sub.ends[side].handle.as_mut().expect("the caller looked");
    let polled = AsyncRead::poll_read(Pin::new(handle), cx, &mut out);
    match polled {
        Poll::Ready(Ok(())) => {
            let bytes = out.filled().to_vec();
            took(id, sub, side, Ok(&bytes));
        }
        Poll::Ready(Err(error)) => took(id, sub, side, Err(error)),
        Poll::Pending => {}
    }
}

async fn read_to_end(id: u64, sub: &mut Sub, side: usize) {
    let never_ends = sub.ends[1 - side].handle.is_none() && !sub.ends[1 - side].shut;
    if sub.ends[side].handle.is_none() || never_ends {
        return;
    }
    loop {
        let mut buffer = vec![0; 4096];
        let handle = sub.ends[side].handle.as_mut().expect("looked at above");
        let result = within(
            "the end of a stream",
            poll_fn(|cx| {
                let mut out = ReadBuf::new(&mut buffer);
                match AsyncRead::poll_read(Pin::new(&mut *handle), cx, &mut out) {
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(out.filled().to_vec())),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                }
            }),
        )
        .await;
        match result {
            Ok(bytes) => {
                took(id, sub, side, Ok(&bytes));
                if bytes.is_empty() {
                    return;
                }
            }
            Err(error) => return took(id, sub, side, Err(error)),
        }
    }
}

async fn finish(id: u64, sub: &mut Sub, side: usize) {
    let reset = sub.reset;
    let stopped = sub.ends[1 - side].stopped;
    if let Some(handle) = &mut sub.ends[side].handle {
        match within("a finish", handle.finish()).await {
            Ok(Finished::Acked) => {}
            Err(FinishError::Stopped(_)) => assert!(stopped, "{id}/{side}"),
            outcome => assert!(reset, "{id}/{side}: {outcome:?}"),
        }
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (a, b) = (random_config(&mut rng), random_config(&mut rng));
    let pair = Pair::with(a, b, MemoryConfig::hostile(seed));
    let mut run = Run {
        rng,
        pair,
        subs: BTreeMap::new(),
        seed,
    };
    for _ in 0..OPERATIONS {
        run.step().await;
    }
    run.wind_down().await;
    assert_eq!(run.pair.a.stats().violations, 0, "seed {}", run.seed);
    assert_eq!(run.pair.b.stats().violations, 0, "seed {}", run.seed);
    // Nothing is left, and both logs keep the rules.
    run.pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn h14_random_operations_keep_the_rules_and_lose_nothing() {
    for seed in seeds(100) {
        println!("seed {seed}");
        run(seed).await;
    }
}
