//! 1 000 requests that are answered with 48 KiB and reset by the peer leave nothing behind, also
//! while the answers are not acknowledged, or not read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anabranch::{Config, Connection, Endpoint, EndpointConfig, Negotiation, Substream};
use anabranch_testkit::simulator::{Conditions, Network, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{ALONE, LIMIT, live, many, tasks, until};

const REQUESTS: usize = 1000;

/// Length of an answer. A thousand of them are 48 MB.
const ANSWER: usize = 48 * 1024;

/// Allowed growth of live bytes while they run: buffers, a congestion window and the last answer.
const GROWTH: isize = 1_000_000;

fn config() -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config
}

/// Answers every request, which the peer resets.
async fn serve(connection: Connection, answered: Arc<AtomicUsize>) {
    let mut serving = JoinSet::new();
    while let Ok(Some(substream)) = connection.accept().await {
        serving.spawn(answer(substream, Arc::clone(&answered)));
        while serving.try_join_next().is_some() {}
    }
    serving.join_all().await;
}

async fn answer(mut substream: Substream, answered: Arc<AtomicUsize>) {
    if substream.read_u8().await.is_ok() && substream.write_all(&[7; ANSWER]).await.is_ok() {
        answered.fetch_add(1, Ordering::Relaxed);
        let _ = substream.read_to_end(&mut Vec::new()).await;
    }
}

/// Sends requests and resets each after 300 ms; returns the peak growth of live bytes.
async fn request_and_reset(a: &Connection, count: usize) -> isize {
    let start = live();
    let mut most = 0;
    for nth in 0..count {
        let mut substream = match timeout(LIMIT, a.open("")).await {
            Ok(Ok(substream)) => substream,
            other => panic!("request {nth}: {other:?}, {} bytes more", live() - start),
        };
        substream.write_u8(1).await.expect("room");
        substream.flush().await.expect("room");
        sleep(Duration::from_millis(300)).await;
        substream.reset(7);
        drop(substream);
        // The channel is closed 2 s later.
        sleep(Duration::from_millis(2300)).await;
        most = most.max(live() - start);
    }
    most
}

/// Which answers reach the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    All,
    /// One full packet every 10 s, so that the connection does not end without progress.
    Few,
}

async fn over_webrtc(answers: Answers) {
    let _alone = ALONE.lock().await;
    let network = Network::new(8);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(20)));
    let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
    let builder = || {
        Endpoint::builder()
            .config(config())
            .endpoint_config(EndpointConfig::default())
    };
    let server = builder()
        .sockets(hosts[0].clone())
        .bind("10.0.0.1:4001")
        .await
        .unwrap();
    let client = builder().sockets(hosts[1].clone()).dial_only().unwrap();
    let address = server.addresses().remove(0);
    let (a, b) = tokio::join!(client.connect(&address), async {
        server.accept().await.expect("open").accept().await
    });
    let (a, b) = (a.unwrap(), b.unwrap());
    let answered = Arc::new(AtomicUsize::new(0));
    let serving = tokio::spawn(serve(b.clone(), Arc::clone(&answered)));
    // Buffers and maps reach their size.
    request_and_reset(&a, 20).await;
    let source = address.socket_addr();
    let mut passed = Instant::now();
    if answers == Answers::Few {
        network.set_tap(move |datagram| {
            if datagram.source != source || datagram.contents.len() < 500 {
                return Verdict::Pass;
            }
            if passed.elapsed() < Duration::from_secs(10) {
                return Verdict::Drop;
            }
            passed = Instant::now();
            Verdict::Pass
        });
    }
    let count = many(REQUESTS);
    let most = request_and_reset(&a, count).await;
    println!("{answers:?}: {most} bytes more at most, {answered:?} answers written");
    assert!(most <= GROWTH, "{answers:?}: {most} bytes more");
    assert_eq!((a.close_reason(), b.close_reason()), (None, None));
    assert!(answered.load(Ordering::Relaxed) >= count, "{answered:?}");
    network.clear_tap();
    until("the end of every substream", || {
        a.stats().substreams + b.stats().substreams == 0
    })
    .await;
    a.close().await;
    b.close().await;
    serving.await.expect("no panic");
    client.close().await;
    server.close().await;
    assert!(a.is_idle() && b.is_idle() && client.is_idle() && server.is_idle());
    drop((a, b, client, server));
    sleep(LIMIT).await;
    assert_eq!((network.sockets(), network.in_flight(), tasks()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_1_000_answers_that_are_reset_nothing_is_left() {
    over_webrtc(Answers::All).await;
}

#[tokio::test(start_paused = true)]
async fn of_1_000_answers_that_are_reset_unacknowledged_a_window_is_left() {
    over_webrtc(Answers::Few).await;
}

#[cfg(feature = "websocket")]
mod websocket {
    use anabranch::websocket::{Authentication, ClientConfig, ServerConfig, accept, connect_over};
    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
    use tokio::time::Sleep;

    use super::*;

    /// The client's end of a pipe, which it reads more slowly than the answers arrive.
    struct Slow {
        io: DuplexStream,
        /// Maximum length of a read, and the pause after it.
        step: usize,
        pause: Duration,
        rest: Pin<Box<Sleep>>,
    }

    impl AsyncRead for Slow {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let this = &mut *self;
            ready!(this.rest.as_mut().poll(cx));
            let mut part = buf.take(this.step);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
            let got = part.filled().len();
            // Of the same memory, which `take` has initialized as far as it is filled.
            buf.initialize_unfilled_to(got);
            buf.advance(got);
            this.rest.as_mut().reset(Instant::now() + this.pause);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            Pin::new(&mut self.io).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    async fn over_a_websocket(step: usize, pause: Duration) {
        let _alone = ALONE.lock().await;
        let (near, far) = duplex(16 * 1024);
        let near = Slow {
            io: near,
            step,
            pause,
            rest: Box::pin(sleep(Duration::ZERO)),
        };
        let mut client = ClientConfig::new(Authentication::DangerNone);
        client.connection = Arc::new(config());
        let mut server = ServerConfig::new(Authentication::DangerNone);
        server.connection = Arc::new(config());
        let address = "/ip4/127.0.0.1/tcp/1/ws".parse().unwrap();
        let (a, b) = tokio::join!(connect_over(near, &address, &client), accept(far, &server));
        let (a, b) = (a.unwrap(), b.unwrap());
        let answered = Arc::new(AtomicUsize::new(0));
        let serving = tokio::spawn(serve(b.clone(), Arc::clone(&answered)));
        request_and_reset(&a, 20).await;
        let most = request_and_reset(&a, many(REQUESTS)).await;
        println!("{step} bytes each {pause:?}: {most} bytes more at most, {answered:?} answers");
        assert!(most <= GROWTH, "{most} bytes more");
        assert_eq!((a.close_reason(), b.close_reason()), (None, None));
        until("the end of every substream", || {
            a.stats().substreams + b.stats().substreams == 0
        })
        .await;
        tokio::join!(a.close(), b.close());
        serving.await.expect("no panic");
        assert!(a.is_idle() && b.is_idle());
        drop((a, b));
        sleep(LIMIT).await;
        assert_eq!(tasks(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn of_1_000_answers_that_are_reset_over_a_websocket_nothing_is_left() {
        over_a_websocket(16 * 1024, Duration::ZERO).await;
    }

    /// 10 KiB a second, while the answers are 18 KiB a second.
    #[tokio::test(start_paused = true)]
    async fn of_1_000_answers_that_are_reset_before_they_are_read_a_batch_is_left() {
        over_a_websocket(1024, Duration::from_millis(100)).await;
    }
}
