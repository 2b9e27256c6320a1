//! `examples/graceful_server.rs` as a process, under load, which gets SIGTERM.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anabranch::{Address, Endpoint, OpenError, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

#[path = "common/programs.rs"]
mod programs;
use programs::example;

const PROTOCOL: &str = "/echo/1.0.0";
const LIMIT: Duration = Duration::from_secs(60);

/// Killed when the test fails.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes in two halves, and expects both back.
async fn exchange(mut substream: Substream, size: usize) {
    let half: Vec<u8> = (0..size / 2).map(|i| (i % 251) as u8).collect();
    let (read, write) = substream.split();
    let mut back = Vec::new();
    let (sent, received) = tokio::join!(
        async {
            write.write_all(&half).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            write.write_all(&half).await?;
            Ok::<_, std::io::Error>(write.finish().await?)
        },
        read.read_to_end(&mut back)
    );
    sent.expect("the server has it all");
    received.expect("all comes back, and the end");
    assert!(
        back == [&half[..], &half].concat(),
        "the bytes are the same"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gets_sigterm_under_200_transfers_loses_none() {
    let mut server = Command::new(example("graceful_server"));
    server.stdout(Stdio::piped());
    let mut server = Server(server.spawn().expect("it starts"));
    let mut lines = BufReader::new(server.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("its address");
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .expect("an address");
    let address: Address = address.parse().expect("an address");

    let mut transfers = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..10 {
        let client = Endpoint::builder().dial_only().expect("defaults work");
        let connection = client.connect(&address).await.expect("it listens");
        for _ in 0..20 {
            let substream = connection.open(PROTOCOL).await.expect("it is spoken");
            transfers.spawn(exchange(substream, 128 << 10));
        }
        clients.push((client, connection));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let kill = Command::new("kill").arg(server.0.id().to_string()).status();
    assert!(kill.expect("a command of every system").success());
    let mut late = 0;
    for (_, connection) in &clients {
        let refused = loop {
            match connection.open(PROTOCOL).await {
                // Opened before the peer was told.
                Ok(substream) => {
                    late += 1;
                    transfers.spawn(exchange(substream, 2));
                }
                Err(error) => break error,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(matches!(refused, OpenError::Draining), "{refused}");
    }
    let done = timeout(LIMIT, transfers.join_all()).await.expect("all end");
    assert_eq!(done.len(), 200 + late);
    for (client, connection) in clients {
        let cause = timeout(LIMIT, connection.closed())
            .await
            .expect("it closes");
        assert!(cause.is_orderly(), "{cause}");
        client.close().await;
        assert!(client.is_idle());
    }
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("its last words");
    assert_eq!(
        rest,
        "draining\n0 connections and 0 substreams were cut off\n"
    );
    assert!(server.0.wait().expect("it ends").success());
}
