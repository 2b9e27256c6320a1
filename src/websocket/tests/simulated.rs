//! Random operations over a pipe that fragments, delays, stalls and breaks, in virtual time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::carrier;
use super::connections::plain;
use crate::carrier::{Carrier, Class, Written};
use crate::connection::Connection;
use crate::message::Message;
use crate::substream::{Finished, Substream};
use crate::websocket::WebSocketConfig;

/// One end of a pipe with random delays and short reads.
struct Unsteady {
    io: DuplexStream,
    rng: StdRng,
    stall: Pin<Box<Sleep>>,
    /// Maximum delay of a read.
    delay: Duration,
    /// When the pipe breaks silently.
    breaks_at: Option<Instant>,
}

impl Unsteady {
    fn new(io: DuplexStream, seed: u64, delay: Duration, breaks_at: Option<Instant>) -> Self {
        Self {
            io,
            rng: StdRng::seed_from_u64(seed),
            stall: Box::pin(sleep_until(Instant::now())),
            delay,
            breaks_at,
        }
    }

    fn is_broken(&self) -> bool {
        self.breaks_at.is_some_and(|at| at <= Instant::now())
    }
}

impl AsyncRead for Unsteady {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        ready!(this.stall.as_mut().poll(cx));
        if this.is_broken() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let most = this.rng.random_range(1..=buf.remaining().min(20_000));
        let mut part = buf.take(most);
        let result = ready!(Pin::new(&mut this.io).poll_read(cx, &mut part));
        let got = part.filled().len();
        // Of the same memory, which `take` has initialized as far as it is filled.
        buf.initialize_unfilled_to(got);
        buf.advance(got);
        if this.rng.random_bool(0.3) {
            let most = this.delay.as_micros() as u64;
            let delay = Duration::from_micros(this.rng.random_range(0..=most));
            this.stall.as_mut().reset(Instant::now() + delay);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Unsteady {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let this = &mut *self;
        if this.is_broken() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let most = this.rng.random_range(1..=buf.len().clamp(1, 20_000));
        Pin::new(&mut this.io).poll_write(cx, buf.get(..most).unwrap_or(buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What one substream of the opener does and expects.
#[derive(Debug, Clone, Copy)]
enum Plan {
    /// Send this much, and receive it back.
    Echo(usize),
    /// Reset after this much.
    Reset(usize),
    /// Write this much and drop it.
    Drop(usize),
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

async fn respond(substream: Substream) {
    let (mut read, mut write) = substream.into_split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.finish().await;
}

/// Returns whether all of it succeeded.
async fn follow(connection: Connection, plan: Plan) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let substream = connection.open("").await.map_err(|error| failed(&error))?;
    match plan {
        Plan::Echo(size) => {
            let (mut read, mut write) = substream.into_split();
            let data = pattern(size);
            let sending = async {
                write.write_all(&data).await?;
                std::io::Result::Ok(write.finish().await?)
            };
            let mut got = Vec::new();
            let (outcome, read) = tokio::join!(sending, read.read_to_end(&mut got));
            // Whatever happens, no wrong byte arrives.
            assert!(data.starts_with(&got), "{} bytes of {size}", got.len());
            read.map_err(|error| failed(&error))?;
            let outcome = outcome.map_err(|error| failed(&error))?;
            assert_eq!(got.len(), size, "an end that came too early");
            assert_eq!(outcome, Finished::Acked);
        }
        Plan::Reset(size) => {
            let mut substream = substream;
            let written = substream.write_all(&pattern(size)).await;
            substream.reset(9);
            written.map_err(|error| failed(&error))?;
        }
        Plan::Drop(size) => {
            let mut substream = substream;
            let written = substream.write_all(&pattern(size)).await;
            written.map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    // A FIN_ACK waits for one message at most, which has to pass within its ten seconds.
    let paths = [(64, 1), (1000, 20), (30_000, 80), (200_000, 80)];
    let (pipe, delay) = paths[rng.random_range(0..paths.len())];
    let delay = Duration::from_millis(rng.random_range(0..=delay));
    let broken = rng.random_bool(0.3);
    let breaks_at =
        broken.then(|| Instant::now() + Duration::from_millis(rng.random_range(0..3000)));
    let (a, b) = duplex(pipe);
    let a = Unsteady::new(a, rng.random(), delay, breaks_at);
    let b = Unsteady::new(b, rng.random(), delay, breaks_at);
    let mut config = WebSocketConfig::default();
    config.batch = rng.random_range(16 * 1024..=128 * 1024);
    let client_opens = rng.random_bool(0.5);
    let a = carrier(a, client_opens, config.clone()).await;
    let b = carrier(b, !client_opens, config).await;
    let (a, driver_a) = Connection::over(a, plain());
    let (b, driver_b) = Connection::over(b, plain());
    let drivers = [tokio::spawn(driver_a), tokio::spawn(driver_b)];
    let responding = tokio::spawn({
        let b = b.clone();
        async move {
            while let Ok(Some(substream)) = b.accept().await {
                tokio::spawn(respond(substream));
            }
        }
    });
    let mut tasks = Vec::new();
    for _ in 0..rng.random_range(1..20) {
        let size = match rng.random_range(0..3) {
            0 => rng.random_range(0..100),
            1 => rng.random_range(0..20_000),
            _ => rng.random_range(0..300_000),
        };
        let plan = match rng.random_range(0..6) {
            0 => Plan::Reset(size),
            1 => Plan::Drop(size),
            _ => Plan::Echo(size),
        };
        tasks.push((plan, tokio::spawn(follow(a.clone(), plan))));
        if rng.random_bool(0.3) {
            sleep(Duration::from_millis(rng.random_range(0..50))).await;
        }
    }
    for (plan, task) in tasks {
        let result = timeout(Duration::from_secs(600), task)
            .await
            .unwrap_or_else(|_| panic!("{plan:?} hangs"))
            .unwrap_or_else(|error| panic!("{plan:?}: {error}"));
        if let Err(error) = result {
            assert!(broken, "{plan:?} failed on a pipe that holds: {error}");
        }
    }
    a.close().await;
    timeout(Duration::from_secs(60), b.closed())
        .await
        .expect("the peer learns of the end");
    timeout(Duration::from_secs(60), responding)
        .await
        .expect("no more to accept")
        .unwrap();
    for driver in drivers {
        timeout(Duration::from_secs(60), driver)
            .await
            .expect("the driver ends")
            .unwrap();
    }
    // The responders have yet to see the end.
    timeout(Duration::from_secs(60), async {
        while !(a.is_idle() && b.is_idle()) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("left: {:?}, {:?}", a.stats(), b.stats()));
}

#[tokio::test(start_paused = true)]
async fn random_operations_over_an_unsteady_pipe_lose_nothing() {
    for seed in crate::random::seeds(60) {
        let running = tokio::spawn(run(seed));
        if let Err(error) = running.await {
            panic!("seed {seed}: {error}");
        }
    }
}

/// Rows J-14 and H-11: closed substreams leave no state on either side.
#[tokio::test(start_paused = true)]
async fn channels_that_are_over_leave_nothing() {
    let (a, b) = duplex(100_000);
    let mut a = carrier(a, true, WebSocketConfig::default()).await;
    let mut b = carrier(b, false, WebSocketConfig::default()).await;
    let frame = Message::data("x".into()).encode();
    for _ in 0..1000 {
        let channel = a.open("").unwrap();
        assert_eq!(a.write(channel, &frame, Class::Data), Written::Taken);
        a.close_channel(channel);
        poll_fn(|cx| {
            while let Poll::Ready(event) = a.poll_event(cx) {
                event.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        poll_fn(|cx| {
            while let Poll::Ready(event) = b.poll_event(cx) {
                event.unwrap();
            }
            while b.read(channel).is_some() {}
            Poll::Ready(())
        })
        .await;
    }
    assert_eq!(a.channels().len(), (0, 0));
    assert_eq!(b.channels().len(), (0, 0));
}
