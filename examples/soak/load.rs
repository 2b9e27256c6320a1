//! The listener, and the diallers that load it.

use std::error::Error;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anabranch::{
    Address, ConnectError, Connection, Endpoint, Finished, OpenError, ReadHalf, Substream,
    SubstreamError, WriteHalf,
};
use anabranch_testkit::simulator::{Host, Network};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::content;
use crate::tally::{Received, Tally};

pub(crate) const ECHO: &str = "/soak/echo";
/// Receives bytes after the number of the upload.
pub(crate) const SINK: &str = "/soak/sink";
/// Sends bytes; the request names their number and stream.
pub(crate) const SOURCE: &str = "/soak/source";

/// Limit within which every operation must end or fail: a transfer over a lossy path of 200 kB/s
/// takes a minute, and a dead path is detected in 15 s.
const HANGS: Duration = Duration::from_secs(900);

const MAX_LENGTH: u64 = 4 << 20;

/// Accepts every connection until the endpoint is closed.
pub(crate) async fn serve(server: Endpoint, tally: Arc<Tally>, seed: u64) {
    let mut connections = JoinSet::new();
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5e17e);
    while let Some(incoming) = server.accept().await {
        while let Some(ended) = connections.try_join_next() {
            ended.expect("no panic");
        }
        let (tally, seed) = (Arc::clone(&tally), rng.random());
        connections.spawn(async move {
            match incoming.accept().await {
                Ok(connection) => serve_connection(connection, tally, seed).await,
                Err(error) => tally.met(connect_kind("accept", &error)),
            }
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended.expect("no panic");
    }
}

async fn serve_connection(connection: Connection, tally: Arc<Tally>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut substreams = JoinSet::new();
    // Sometimes this side ends the connection.
    let patience = if rng.random_bool(0.1) {
        Duration::from_millis(rng.random_range(100..5000))
    } else {
        HANGS
    };
    let mut tired = pin!(sleep(patience));
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Ok(Some(substream)) = accepted else { break };
                while substreams.try_join_next().is_some() {}
                let (tally, seed) = (Arc::clone(&tally), rng.random());
                substreams.spawn(async move {
                    if serve_substream(substream, &tally, seed).await.is_err() {
                        tally.met("served substream ended with an error, as its opener did");
                    }
                });
            }
            () = &mut tired => {
                tally.met("connection closed by the listener");
                connection.close_with(7, "tired").await;
                break;
            }
        }
    }
    let cause = connection.closed().await;
    tally.met(format!(
        "listener: connection ended: {}",
        cut(&cause.to_string())
    ));
    while let Some(ended) = substreams.join_next().await {
        ended.expect("no panic");
    }
}

async fn serve_substream(substream: Substream, tally: &Tally, seed: u64) -> io::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let protocol = substream.protocol().map(str::to_owned);
    let (mut reader, mut writer) = substream.into_split();
    match protocol.as_deref() {
        Some(SINK) => {
            let number = reader.read_u64().await?;
            let mut received = Received::default();
            let ended = receive(&mut reader, number, &mut received, &mut rng, tally).await;
            received.orderly = ended.is_ok();
            tally.report_transfer(number, received);
            ended?;
            writer.write_u64(received.bytes).await?;
        }
        Some(SOURCE) => {
            let (length, number) = (reader.read_u64().await?, reader.read_u64().await?);
            let sent = send(&mut writer, number, length.min(MAX_LENGTH)).await;
            sent.inspect_err(|_| tally.cut_short(number))?;
        }
        _ => {
            let number = reader.read_u64().await?;
            let copied = tokio::io::copy(&mut reader, &mut writer).await;
            copied.inspect_err(|_| tally.cut_short(number))?;
        }
    }
    writer.finish().await?;
    Ok(())
}

/// Reads a stream to its end and compares it. Stalls now and then.
async fn receive(
    reader: &mut ReadHalf,
    stream: u64,
    received: &mut Received,
    rng: &mut StdRng,
    tally: &Tally,
) -> io::Result<()> {
    while let Some(chunk) = reader.read_chunk(64 * 1024).await? {
        if !content::is(stream, received.bytes, &chunk) {
            tally.lose(&format!(
                "other bytes than were sent, in {} behind {}",
                chunk.len(),
                received.bytes
            ));
            return Err(io::ErrorKind::InvalidData.into());
        }
        received.bytes += chunk.len() as u64;
        tally.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if rng.random_bool(0.005) {
            sleep(Duration::from_millis(rng.random_range(1..3000))).await;
        }
    }
    Ok(())
}

async fn send(writer: &mut WriteHalf, stream: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    let mut position = 0;
    while position < length {
        let room = usize::try_from(length - position).unwrap_or(usize::MAX);
        let part = room.min(buffer.len());
        content::fill(stream, position, &mut buffer[..part]);
        writer.write_all(&buffer[..part]).await?;
        position += part as u64;
    }
    Ok(())
}

/// One host that connects again and again.
pub(crate) struct Dialler {
    pub(crate) client: Endpoint,
    pub(crate) address: Address,
    pub(crate) tally: Arc<Tally>,
    pub(crate) seed: u64,
    pub(crate) network: Option<(Network, Host)>,
    pub(crate) deadline: Instant,
}

impl Dialler {
    pub(crate) async fn run(self) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        while Instant::now() < self.deadline {
            if rng.random_bool(0.1) {
                let after = Duration::from_millis(rng.random_range(0..200));
                let abandoned = timeout(after, self.client.connect(&self.address)).await;
                self.tally.met(match abandoned {
                    Err(_) => "dial abandoned",
                    Ok(_) => "connection dropped as soon as it was made, or not made",
                });
                continue;
            }
            match self.client.connect(&self.address).await {
                Ok(connection) => self.use_up(connection, &mut rng).await,
                Err(error) => self.tally.met(connect_kind("dial", &error)),
            }
        }
    }

    /// Some rounds of concurrent transfers, and an end.
    async fn use_up(&self, connection: Connection, rng: &mut StdRng) {
        self.tally.met("connections");
        for _ in 0..rng.random_range(1..6) {
            let mut transfers = JoinSet::new();
            for _ in 0..rng.random_range(1..8) {
                let (connection, tally) = (connection.clone(), Arc::clone(&self.tally));
                let seed = rng.random();
                transfers.spawn(async move {
                    let transfer = transfer(connection, &tally, seed);
                    if timeout(HANGS, transfer).await.is_err() {
                        tally.lose("a transfer that neither goes on nor ends");
                    }
                });
            }
            if rng.random_bool(0.05) {
                sleep(Duration::from_millis(rng.random_range(0..500))).await;
                self.end_now(&connection, rng).await;
            }
            while let Some(ended) = transfers.join_next().await {
                ended.expect("no panic");
            }
            if connection.close_reason().is_some() || Instant::now() >= self.deadline {
                break;
            }
        }
        if rng.random_bool(0.5) {
            if timeout(HANGS, connection.close()).await.is_err() {
                self.tally.lose("a close without an end");
            }
            let cause = connection.closed().await.to_string();
            self.tally
                .met(format!("dialler: connection ended: {}", cut(&cause)));
        } else {
            self.tally.met("connection dropped");
        }
    }

    /// In the middle of transfers.
    async fn end_now(&self, connection: &Connection, rng: &mut StdRng) {
        match (&self.network, rng.random_range(0..3)) {
            (Some((network, host)), 0) => {
                self.tally.met("host silenced under its transfers");
                network.set_silent(host, true);
                sleep(Duration::from_secs(20)).await;
                network.set_silent(host, false);
            }
            (_, 1) => {
                self.tally.met("connection closed under its transfers");
                connection.close_with(9, "now").await;
            }
            _ => {}
        }
    }
}

/// One substream with a random use.
async fn transfer(connection: Connection, tally: &Tally, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    // Most are short.
    let length = match rng.random_range(0..10) {
        0 => 0,
        1..=6 => rng.random_range(0..20_000),
        7 | 8 => rng.random_range(0..400_000),
        _ => rng.random_range(0..MAX_LENGTH),
    };
    let (name, result) = match rng.random_range(0..10) {
        0..=2 => ("echo", echo(&connection, tally, seed, length).await),
        3..=5 => ("upload", upload(&connection, tally, length).await),
        6 | 7 => ("download", download(&connection, tally, seed, length).await),
        _ => ("broken off", break_off(&connection, &mut rng, length).await),
    };
    match result {
        Ok(outcome) => tally.met(format!("{name}: {outcome}")),
        Err(error) => tally.met(format!("{name}: error: {}", kind(&*error))),
    }
}

type Ended = Result<String, Box<dyn Error + Send + Sync>>;

async fn echo(connection: &Connection, tally: &Tally, seed: u64, length: u64) -> Ended {
    let (mut reader, mut writer) = connection.open(ECHO).await?.into_split();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut received = Received::default();
    let number = tally.begin_transfer();
    let writing = async {
        writer.write_u64(number).await?;
        send(&mut writer, number, length).await?;
        io::Result::Ok(writer.finish().await?)
    };
    let reading = receive(&mut reader, number, &mut received, &mut rng, tally);
    let (outcome, read) = tokio::join!(writing, reading);
    let short = read.is_ok() && is_taken(&outcome) && received.bytes != length;
    if is_cut(tally, number, short).await {
        return Ok("ended by the listener, which knows that it is not complete".to_owned());
    }
    if short {
        let bytes = received.bytes;
        tally.lose(&format!(
            "an echo that ends in order behind {bytes} of {length}"
        ));
    }
    read?;
    Ok(format!("{:?}", outcome?))
}

async fn upload(connection: &Connection, tally: &Tally, length: u64) -> Ended {
    let (mut reader, mut writer) = connection.open(SINK).await?.into_split();
    let number = tally.begin_transfer();
    let sending = async {
        writer.write_u64(number).await?;
        send(&mut writer, number, length).await?;
        io::Result::Ok(writer.finish().await?)
    };
    let outcome = sending.await;
    let told = reader.read_u64().await;
    if let Ok(told) = told
        && told != length
        && outcome.is_ok()
    {
        tally.lose(&format!(
            "an upload that ends in order behind {told} of {length}"
        ));
    }
    // FIN is confirmed when it has arrived; the application may not have read up to it yet.
    if matches!(outcome, Ok(Finished::Acked)) && told.is_err() {
        sleep(Duration::from_secs(10)).await;
    }
    let received = tally.end_transfer(number);
    if received.orderly && outcome.is_ok() && received.bytes != length {
        let bytes = received.bytes;
        tally.lose(&format!(
            "an upload of which {bytes} of {length} are there: {outcome:?}"
        ));
    }
    let outcome = outcome?;
    if outcome == Finished::Acked && told.is_ok() && !received.orderly {
        tally.lose("an upload that was confirmed and did not end in order");
    }
    told?;
    Ok(format!("{outcome:?}"))
}

async fn download(connection: &Connection, tally: &Tally, seed: u64, length: u64) -> Ended {
    let (mut reader, mut writer) = connection.open(SOURCE).await?.into_split();
    let mut rng = StdRng::seed_from_u64(seed);
    let number = tally.begin_transfer();
    let asking = async {
        writer.write_u64(length).await?;
        writer.write_u64(number).await?;
        io::Result::Ok(writer.finish().await?)
    };
    let outcome = asking.await;
    let mut received = Received::default();
    let read = receive(&mut reader, number, &mut received, &mut rng, tally).await;
    let short = read.is_ok() && is_taken(&outcome) && received.bytes != length;
    if is_cut(tally, number, short).await {
        return Ok("ended by the listener, which knows that it is not complete".to_owned());
    }
    if short {
        let bytes = received.bytes;
        tally.lose(&format!(
            "a download that ends in order behind {bytes} of {length}"
        ));
    }
    read?;
    Ok(format!("{:?}", outcome?))
}

/// Whether the listener must have received the request: without FIN_ACK it may not have arrived,
/// and this side has got an error.
fn is_taken(outcome: &io::Result<Finished>) -> bool {
    matches!(outcome, Ok(Finished::Acked))
}

/// Ends a transfer. Returns whether it ended early because the listener closed its connection,
/// which the listener saw as an error of its write: a close ends every stream in order, after what
/// was written.
async fn is_cut(tally: &Tally, number: u64, short: bool) -> bool {
    if short {
        // The listener may learn it later than this side.
        sleep(Duration::from_secs(15)).await;
    }
    tally.end_transfer(number).cut && short
}

/// Ends that intentionally discard data.
async fn break_off(connection: &Connection, rng: &mut StdRng, length: u64) -> Ended {
    let mut substream = connection.open(ECHO).await?;
    let part = rng.random_range(0..=length);
    let (reader, writer) = substream.split();
    let while_reading = async {
        let _ = send(writer, 1, part).await;
    };
    let mut buffer = vec![0; 4096];
    tokio::select! {
        () = while_reading => {}
        _ = async { while let Ok(1..) = reader.read(&mut buffer).await {} } => {}
    }
    let how = rng.random_range(0..5);
    match how {
        0 => substream.reset(5),
        1 => {
            substream.stop(5);
            substream.finish().await?;
        }
        2 => drop(substream),
        3 => {
            let (reader, mut writer) = substream.into_split();
            drop(reader);
            writer.finish().await?;
        }
        _ => {
            let (mut reader, writer) = substream.into_split();
            drop(writer);
            while reader.read_chunk(4096).await?.is_some() {}
        }
    }
    Ok([
        "reset",
        "stopped",
        "dropped",
        "read half dropped",
        "write half dropped",
    ][how]
        .to_owned())
}

/// The kind of an error, without the details that vary.
fn kind(error: &(dyn Error + Send + Sync + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<SubstreamError>());
        return match inner {
            Some(inner) => cut(&inner.to_string()),
            None => format!("{:?}", error.kind()),
        };
    }
    match error.downcast_ref::<OpenError>() {
        Some(error) => format!("open: {}", cut(&error.to_string())),
        None => cut(&error.to_string()),
    }
}

fn connect_kind(what: &str, error: &ConnectError) -> String {
    format!("{what}: {}", cut(&error.to_string()))
}

fn cut(text: &str) -> String {
    text.chars().take(70).collect()
}
