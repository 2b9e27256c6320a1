//! One engine, bare and below the substream layer, with the same carriers on the same sockets.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::carrier::{Carrier, CarrierEvent, Class, Written};
use anabranch::{Config, Connection, EngineFactory, Negotiation, Substream};
use anabranch_testkit::loopback::webrtc_pair;
use tokio::sync::mpsc;

use crate::WRITE;

/// Two connected sides, one of which sends to the other as often as it is asked.
pub(crate) struct Pair {
    /// Bytes to send.
    jobs: mpsc::Sender<usize>,
    /// Bytes that have arrived.
    arrived: mpsc::Receiver<usize>,
}

impl Pair {
    /// Messages of [`WRITE`] bytes on one channel, without an upper layer.
    pub(crate) async fn bare(engine: EngineFactory) -> Self {
        let (sender, receiver) = webrtc_pair([engine; 2]).await;
        let (jobs, job) = mpsc::channel(1);
        let (arrival, arrived) = mpsc::channel(1024);
        tokio::spawn(send_messages(sender, job));
        tokio::spawn(count_messages(receiver, arrival));
        Self { jobs, arrived }
    }

    /// Writes of [`WRITE`] bytes on one substream.
    pub(crate) async fn substream(engine: EngineFactory) -> Self {
        let (sender, receiver) = webrtc_pair([engine; 2]).await;
        let mut config = Config::default();
        config.negotiation = Negotiation::None;
        let config = Arc::new(config);
        let (opener, driver) = Connection::over(sender, Arc::clone(&config));
        tokio::spawn(driver);
        let (acceptor, driver) = Connection::over(receiver, config);
        tokio::spawn(driver);
        let (jobs, job) = mpsc::channel(1);
        let (arrival, arrived) = mpsc::channel(1024);
        let substream = opener.open("").await.expect("a substream");
        tokio::spawn(write(opener, substream, job));
        tokio::spawn(read(acceptor, arrival));
        Self { jobs, arrived }
    }

    /// Time until `bytes` have arrived.
    pub(crate) async fn transfer(&mut self, bytes: usize) -> Duration {
        let began = Instant::now();
        self.jobs.send(bytes).await.expect("the sender lives");
        let mut left = bytes;
        while left > 0 {
            left -= self.arrived.recv().await.expect("the receiver lives");
        }
        began.elapsed()
    }
}

async fn send_messages(mut carrier: impl Carrier, mut jobs: mpsc::Receiver<usize>) {
    let channel = carrier.open("").expect("a channel");
    let message = vec![5; WRITE];
    let mut left = 0;
    loop {
        while left > 0 && carrier.write(channel, &message, Class::Data) == Written::Taken {
            left -= WRITE;
        }
        tokio::select! {
            event = poll_fn(|cx| carrier.poll_event(cx)) => drop(event.expect("the carrier lives")),
            job = jobs.recv(), if left == 0 => match job {
                Some(bytes) => left = bytes,
                None => return,
            },
        }
    }
}

async fn count_messages(mut carrier: impl Carrier, arrival: mpsc::Sender<usize>) {
    while let Ok(event) = poll_fn(|cx| carrier.poll_event(cx)).await {
        if let CarrierEvent::Readable { channel } = event {
            let mut bytes = 0;
            while let Some(message) = carrier.read(channel) {
                bytes += message.len();
            }
            if bytes > 0 && arrival.send(bytes).await.is_err() {
                return;
            }
        }
    }
}

async fn write(_connection: Connection, mut substream: Substream, mut jobs: mpsc::Receiver<usize>) {
    let chunk = bytes::Bytes::from(vec![5; WRITE]);
    while let Some(bytes) = jobs.recv().await {
        for _ in 0..bytes / WRITE {
            substream.write_chunk(chunk.clone()).await.expect("a write");
        }
    }
}

async fn read(connection: Connection, arrival: mpsc::Sender<usize>) {
    let accepted = connection.accept().await.expect("a connection");
    let mut substream = accepted.expect("a substream");
    while let Ok(Some(chunk)) = substream.read_chunk(usize::MAX).await {
        if arrival.send(chunk.len()).await.is_err() {
            return;
        }
    }
}
