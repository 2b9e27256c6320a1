//! libp2p-webrtc and litep2p, as programs: `interop/rust/setup.sh` builds them.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use anabranch_libp2p::{Connection, Stream, Transport};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p_core::connection::Endpoint;
use libp2p_core::multiaddr::Multiaddr;
use libp2p_core::muxing::StreamMuxerExt;
use libp2p_core::transport::{DialOpts, ListenerId, PortUse, Transport as _, TransportEvent};
use libp2p_identity::Keypair;
use multistream_select::{Negotiated, Version, dialer_select_proto, listener_select_proto};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

const ECHO: &str = "/echo/1.0.0";
const PING: &str = "/ipfs/ping/1.0.0";

const DIAL: DialOpts = DialOpts {
    role: Endpoint::Dialer,
    port_use: PortUse::Reuse,
};

fn executable(program: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../interop/rust");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let path = workspace.join(target).join("release").join(program);
    assert!(
        path.exists(),
        "{}: run interop/rust/setup.sh",
        path.display()
    );
    path
}

fn command(program: &str) -> Command {
    let mut command = Command::new(executable(program));
    // What libp2p-webrtc can read itself.
    command.env("WEBRTC_PEER_MAX_MESSAGE", "8192");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// A foreign listener, and its address.
async fn listening(program: &str) -> (Child, Multiaddr) {
    let mut child = command(program).arg("listen").spawn().expect("it starts");
    let stdout = child.stdout.take().expect("a pipe");
    let mut line = String::new();
    let read = timeout(LIMIT, BufReader::new(stdout).read_line(&mut line)).await;
    read.expect("in time").expect("a line of text");
    let (_, rest) = line.split_once("\"listen\":\"").expect("an address");
    let address = rest.split('"').next().expect("an address");
    (child, address.parse().expect("a multiaddr"))
}

fn transport() -> Transport {
    Transport::new(&Keypair::generate_ed25519()).expect("an Ed25519 key")
}

async fn open(connection: &mut Connection, protocol: &str) -> Negotiated<Stream> {
    let opened = poll_fn(|cx| connection.poll_outbound_unpin(cx));
    let stream = timeout(LIMIT, opened)
        .await
        .expect("it opens")
        .expect("it lives");
    let negotiation = dialer_select_proto(stream, [protocol], Version::V1);
    let negotiated = timeout(LIMIT, negotiation).await.expect("it answers");
    negotiated.expect("it is spoken").1
}

async fn echo(connection: &mut Connection, size: usize) {
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let stream = open(connection, ECHO).await;
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let both = futures::future::join(
        async {
            write.write_all(&sent).await?;
            write.close().await
        },
        read.read_to_end(&mut back),
    );
    let (closed, ended) = timeout(LIMIT, both).await.expect("in time");
    closed.expect("it has it all");
    ended.expect("all comes back, and the end");
    assert!(back == sent, "the bytes are the same");
}

async fn we_dial(program: &str) {
    let (mut child, address) = listening(program).await;
    let mut dialler = transport();
    for _ in 0..5 {
        let dial = dialler
            .dial(address.clone(), DIAL)
            .expect("an address of ours");
        let dialled = timeout(LIMIT, dial).await.expect("in time");
        let (_, mut connection) = dialled.expect("it listens");
        let mut ping = open(&mut connection, PING).await;
        for n in 0..3 {
            ping.write_all(&[n; 32]).await.expect("it reads");
            ping.flush().await.expect("it reads");
            let mut answer = [0; 32];
            ping.read_exact(&mut answer).await.expect("it answers");
            assert_eq!(answer, [n; 32]);
        }
        for size in [0, 1, 10_000, 200_000] {
            echo(&mut connection, size).await;
        }
        drop(ping);
        let closed = timeout(LIMIT, poll_fn(|cx| connection.poll_close_unpin(cx)));
        closed.await.expect("in time").expect("a close never fails");
    }
    child.kill().await.expect("it still ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_libp2p_webrtc() {
    we_dial("webrtc-peer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_litep2p() {
    we_dial("litep2p-peer").await;
}

/// Serves echoes on every connection.
async fn serve(mut transport: Transport) {
    loop {
        let event = poll_fn(|cx| Pin::new(&mut transport).poll(cx)).await;
        let TransportEvent::Incoming { upgrade, .. } = event else {
            continue;
        };
        tokio::spawn(async move {
            let (_, mut connection) = upgrade.await.expect("an honest peer");
            while let Ok(stream) = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await {
                tokio::spawn(async move {
                    let (_, stream) = listener_select_proto(stream, [ECHO, PING]).await?;
                    let (read, mut write) = stream.split();
                    futures::io::copy(read, &mut write).await?;
                    write.close().await?;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
                });
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_dials_us() {
    let mut listener = transport();
    let any = "/ip4/127.0.0.1/udp/0/webrtc-direct"
        .parse()
        .expect("an address");
    listener
        .listen_on(ListenerId::next(), any)
        .expect("a free port");
    let event = poll_fn(|cx| Pin::new(&mut listener).poll(cx)).await;
    let TransportEvent::NewAddress { listen_addr, .. } = event else {
        panic!("{event:?}");
    };
    let serving = tokio::spawn(serve(listener));
    for options in [
        "--echo --count 50 --size 10k",
        "--echo --count 1 --repeat 5",
    ] {
        let dial = command("webrtc-peer")
            .args(["dial", &listen_addr.to_string(), "--timeout-s", "20"])
            .args(options.split(' '))
            .output();
        let output = timeout(3 * LIMIT, dial)
            .await
            .expect("in time")
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !text.contains("\"error\""),
            "{text}"
        );
    }
    serving.abort();
}

/// One program, whose two functions differ in the transport alone.
async fn same_program(dialler: &str, listener: &str) {
    let program = executable("swarm-peer");
    let swarm = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.kill_on_drop(true);
        command
    };
    let mut child = swarm(&[listener, "listen"]).spawn().expect("it starts");
    let stdout = child.stdout.take().expect("a pipe");
    let mut address = String::new();
    let read = timeout(LIMIT, BufReader::new(stdout).read_line(&mut address)).await;
    read.expect("in time").expect("a line of text");
    let dial = swarm(&[dialler, "dial", address.trim()])
        .stderr(Stdio::piped())
        .output();
    let output = timeout(4 * LIMIT, dial).await.expect("in time");
    let output = output.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("4 fetches of 8388608 bytes"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    child.kill().await.expect("it still ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_program_runs_over_both_transports_and_they_understand_each_other() {
    for (dialler, listener) in [
        ("anabranch", "anabranch"),
        ("anabranch", "libp2p-webrtc"),
        ("libp2p-webrtc", "anabranch"),
    ] {
        println!("{dialler} dials {listener}");
        same_program(dialler, listener).await;
    }
}
