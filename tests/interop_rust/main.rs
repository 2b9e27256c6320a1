//! Other Rust stacks as peers: libp2p-webrtc dials us, and we dial it and litep2p.
//!
//! The protocols are those of `interop/rust/README.md`. `interop/rust/setup.sh` builds the peers;
//! `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1),
//! `ANABRANCH_INTEROP_DIALS` says how many dials in a row are made (default 20), and
//! `ANABRANCH_ENGINE=direct` or `str0m` chooses the engine.

use std::io::ErrorKind;
use std::time::Duration;

use anabranch::{
    Address, Config, Connection, Endpoint, EndpointConfig, FinAckPolicy, Finished,
    WebRtcDirectVersion,
};

mod openers;
mod process;
mod responders;

use openers::Opener;
use process::{LITEP2P, Peer, WEBRTC, dial};

/// How long a FIN waits for FIN_ACK here. libp2p-webrtc sends none, so all of it is waited for.
const FIN_ACK_TIMEOUT: Duration = Duration::from_millis(300);

fn environment(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

/// How often each test is repeated.
fn runs() -> usize {
    environment("ANABRANCH_INTEROP_RUNS", 1)
}

fn dials() -> usize {
    environment("ANABRANCH_INTEROP_DIALS", 20)
}

/// Settings with the engine that is asked for.
fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    if let Ok(engine) = std::env::var("ANABRANCH_ENGINE") {
        config.engine = engine.parse().expect("a known engine");
    }
    config
}

fn config(fin_ack: FinAckPolicy) -> Config {
    let mut config = Config::default();
    config.fin_ack_timeout = FIN_ACK_TIMEOUT;
    config.fin_ack = fin_ack;
    // The one that can not read a FIN_ACK at once sends none either.
    config.expect_fin_ack = fin_ack == FinAckPolicy::Always;
    config.protocols = responders::PROTOCOLS.map(str::to_owned).to_vec();
    config
}

/// Shows what `RUST_LOG` asks for.
fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

fn dialler(fin_ack: FinAckPolicy) -> Endpoint {
    log();
    Endpoint::builder()
        .config(config(fin_ack))
        .endpoint_config(endpoint_config())
        .dial_only()
        .expect("defaults work")
}

/// These peers know version 1 only.
async fn connect(endpoint: &Endpoint, address: &str) -> Connection {
    let address: Address = address.parse().expect("a webrtc-direct address");
    let connection = endpoint
        .connect_with(&address, WebRtcDirectVersion::V1)
        .await
        .expect("the peer answers");
    assert_eq!(connection.peer_id(), address.peer_id());
    connection
}

/// Listens on loopback and serves every protocol until it is dropped. Connections begin with the
/// default policy and change to `fin_ack`.
async fn serve(fin_ack: FinAckPolicy) -> Endpoint {
    log();
    let endpoint = Endpoint::builder()
        .config(config(FinAckPolicy::Always))
        .endpoint_config(endpoint_config())
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let serving = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = serving.accept().await {
            tokio::spawn(async move {
                match incoming.accept().await {
                    Ok(connection) => {
                        connection.set_fin_ack(fin_ack);
                        connection.expect_fin_ack(fin_ack == FinAckPolicy::Always);
                        responders::serve(connection).await;
                    }
                    Err(error) => println!("a dialler was not authenticated: {error}"),
                }
            });
        }
    });
    endpoint
}

async fn close(connection: Connection) {
    connection.close().await;
    assert!(connection.is_idle());
}

/// Everything is closed in the end: connections and routes.
async fn assert_nothing_left(endpoint: Endpoint) {
    tokio::time::timeout(Duration::from_secs(15), endpoint.close())
        .await
        .expect("connections end with their peers");
    assert!(endpoint.is_idle(), "{endpoint:?}");
}

/// libp2p-webrtc runs each list of options against us, and every one succeeds.
async fn libp2p_webrtc_dials(max_message: usize, all: &[&str]) {
    for _ in 0..runs() {
        let endpoint = serve(FinAckPolicy::AfterOwnFin).await;
        let address = endpoint.addresses().remove(0).to_string();
        for options in all {
            dial(WEBRTC, max_message, &address, options).await.succeed();
        }
        assert_nothing_left(endpoint).await;
    }
}

/// What libp2p-webrtc can read at once; the programs send no more either.
const READABLE: usize = 8192;

#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_dials_us_and_echoes() {
    libp2p_webrtc_dials(READABLE, &["--echo --count 50 --size 10k"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_dials_us_and_moves_bytes_both_ways() {
    let all = [
        "--up 4m --down 4m",
        "--up 1m --down 1m --streams 3",
        "--up 512k --down 512k --streams 10",
    ];
    libp2p_webrtc_dials(READABLE, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_dials_us_half_closes_and_resets() {
    let cases = ["--case half-close --case reset-local --case reset-remote"];
    libp2p_webrtc_dials(READABLE, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_dials_us_and_either_side_stops_reading_for_a_while() {
    let all = [
        "--stall --up 2m --hold-ms 500",
        "--stall-down --down 2m --hold-ms 500",
    ];
    libp2p_webrtc_dials(READABLE, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_dials_us_many_times_in_a_row() {
    let options = format!("--echo --count 1 --repeat {}", dials());
    libp2p_webrtc_dials(READABLE, &[&options]).await;
}

/// Frames that it does not flush are one message to it: several of 3 000 bytes, or one of almost
/// 16 384, which it could not read itself.
#[tokio::test(flavor = "multi_thread")]
async fn glued_frames_and_long_messages_of_libp2p_webrtc_are_taken() {
    libp2p_webrtc_dials(16_384, &["--up 4m --chunk 3000", "--up 4m"]).await;
}

/// How often two foreign peers try to reach each other. About every fourth time libp2p-webrtc does not get
/// litep2p authenticated, whose first Noise message can come before its dialler listens on channel 0.
const FOREIGN_DIALS: usize = 20;

/// What libp2p-webrtc reports of a transfer that fails, once it is connected to a peer that is not ours.
async fn fail_to_transfer(max_message: usize, address: &str, options: &str) {
    for _ in 0..FOREIGN_DIALS {
        let failures = dial(WEBRTC, max_message, address, options).await.fail();
        if !failures.contains("\"phase\":\"connect\"") {
            assert!(failures.contains("\"phase\":\"transfer\""), "{failures}");
            return;
        }
    }
    panic!("never connected");
}

/// Its limit: between two of its own the same long messages break.
#[tokio::test(flavor = "multi_thread")]
async fn two_libp2p_webrtc_can_not_read_each_others_long_messages() {
    let mut listener = Peer::listen(WEBRTC, 16_384);
    let address = listener.address().await;
    // The responder's "Short buffer" resets the substream, whose opener then sees an early end.
    fail_to_transfer(16_384, &address, "--up 1m").await;
    listener.kill().await;
}

/// Between these two: litep2p fills its messages, and libp2p-webrtc reads none above 8 192 bytes.
#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_can_not_download_from_litep2p() {
    let mut listener = Peer::listen(LITEP2P, READABLE);
    let address = listener.address().await;
    fail_to_transfer(READABLE, &address, "--nofin --down 1m --timeout-s 5").await;
    listener.kill().await;
}

/// Its limit, too, and the reason for the policy: it reads a FIN_ACK as a broken message.
#[tokio::test(flavor = "multi_thread")]
async fn libp2p_webrtc_can_not_read_a_fin_ack_before_the_answer() {
    let endpoint = serve(FinAckPolicy::Always).await;
    let address = endpoint.addresses().remove(0).to_string();
    let case = dial(WEBRTC, READABLE, &address, "--case half-close").await;
    let failures = case.fail();
    assert!(
        failures.contains("unknown enumeration value 3"),
        "{failures}"
    );
    assert_nothing_left(endpoint).await;
}

/// Dials libp2p-webrtc and runs `test` over the connection.
///
/// It answers no FIN with FIN_ACK; all the bytes are there nevertheless.
async fn we_dial_libp2p_webrtc(test: impl AsyncFn(&Opener)) {
    for _ in 0..runs() {
        let mut listener = Peer::listen(WEBRTC, READABLE);
        let endpoint = dialler(FinAckPolicy::AfterOwnFin);
        let opener = Opener {
            connection: connect(&endpoint, &listener.address().await).await,
            finished: Finished::Delivered,
            given_up: ErrorKind::ConnectionReset,
        };
        test(&opener).await;
        close(opener.connection).await;
        assert_nothing_left(endpoint).await;
        listener.kill().await;
    }
}

/// Dials litep2p and runs `test` over the connection.
///
/// A substream that is dropped in litep2p closes its channel without a flag.
async fn we_dial_litep2p(test: impl AsyncFn(&Opener)) {
    for _ in 0..runs() {
        let mut listener = Peer::listen(LITEP2P, READABLE);
        let endpoint = dialler(FinAckPolicy::Always);
        let opener = Opener {
            connection: connect(&endpoint, &listener.address().await).await,
            finished: Finished::Acked,
            given_up: ErrorKind::UnexpectedEof,
        };
        test(&opener).await;
        close(opener.connection).await;
        assert_nothing_left(endpoint).await;
        listener.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_libp2p_webrtc_and_echo() {
    we_dial_libp2p_webrtc(async |opener| {
        for _ in 0..5 {
            opener.echo(100_000).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_libp2p_webrtc_and_move_bytes_both_ways() {
    we_dial_libp2p_webrtc(async |opener| {
        opener.bench(1, 4 << 20, 4 << 20).await;
        opener.bench(3, 1 << 20, 1 << 20).await;
        opener.bench(10, 512 << 10, 512 << 10).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_libp2p_webrtc_half_close_and_reset() {
    we_dial_libp2p_webrtc(async |opener| {
        opener.half_close().await;
        opener.reset().await;
        opener.be_reset().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_libp2p_webrtc_and_either_side_stops_reading_for_a_while() {
    we_dial_libp2p_webrtc(async |opener| {
        opener.write_to_a_stalled_reader(2 << 20).await;
        opener.stall(2 << 20).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_litep2p_and_echo() {
    we_dial_litep2p(async |opener| {
        for length in 0..50 {
            opener.echo(length).await;
        }
        opener.echo(100_000).await;
    })
    .await;
}

/// Ten downloads at once stop for ever where libp2p-webrtc is the dialler.
#[tokio::test(flavor = "multi_thread")]
async fn we_dial_litep2p_and_move_bytes_both_ways() {
    we_dial_litep2p(async |opener| {
        opener.bench(1, 4 << 20, 4 << 20).await;
        opener.bench(3, 1 << 20, 1 << 20).await;
        opener.bench(10, 512 << 10, 512 << 10).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_litep2p_half_close_and_reset() {
    we_dial_litep2p(async |opener| {
        opener.half_close().await;
        opener.reset().await;
        opener.be_reset().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_litep2p_and_either_side_stops_reading_for_a_while() {
    we_dial_litep2p(async |opener| {
        // 512 KiB are 129 frames, of the 256 that it holds.
        opener.write_to_a_stalled_reader(512 << 10).await;
        opener.stall(2 << 20).await;
    })
    .await;
}

/// litep2p resets a substream with 256 unread frames. It costs that one, and it shows as a reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_litep2p_that_stalls_for_too_long_costs_its_substream_only() {
    we_dial_litep2p(async |opener| {
        opener.write_until_reset(16 << 20).await;
        opener.echo(10_000).await;
    })
    .await;
}

async fn we_dial_many_times(program: &str) {
    let mut listener = Peer::listen(program, READABLE);
    let address = listener.address().await;
    let endpoint = dialler(FinAckPolicy::AfterOwnFin);
    for _ in 0..dials() {
        let connection = connect(&endpoint, &address).await;
        close(connection).await;
    }
    assert_nothing_left(endpoint).await;
    listener.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_libp2p_webrtc_many_times_in_a_row() {
    we_dial_many_times(WEBRTC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_litep2p_many_times_in_a_row() {
    we_dial_many_times(LITEP2P).await;
}
