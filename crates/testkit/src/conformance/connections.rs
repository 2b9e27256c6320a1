//! Cases about connections over a carrier.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{TIMEOUT, pattern};
use anabranch::carrier::Carrier;
use anabranch::{
    CloseOutcome, Config, Connection, ConnectionError, FinishError, Finished, Negotiation,
    ReadHalf, Substream, SubstreamError, WriteHalf,
};

/// Awaits a future for at most [`TIMEOUT`]. `what` names it in the panic message.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out waiting for: {what}"),
    }
}

/// Two connections over two carriers, and their drivers.
pub(super) struct Pair {
    pub(super) a: Connection,
    pub(super) b: Connection,
    pub(super) drivers: [JoinHandle<ConnectionError>; 2],
}

impl Pair {
    pub(super) async fn connect<F, Fut, A, B>(factory: F, negotiation: Negotiation) -> Self
    where
        F: Fn() -> Fut,
        Fut: Future<Output = (A, B)>,
        A: Carrier + 'static,
        B: Carrier + 'static,
    {
        let mut config = Config::default();
        config.negotiation = negotiation;
        config.protocols = vec!["/echo/1.0.0".to_owned()];
        Self::with(factory, config).await
    }

    pub(super) async fn with<F, Fut, A, B>(factory: F, config: Config) -> Self
    where
        F: Fn() -> Fut,
        Fut: Future<Output = (A, B)>,
        A: Carrier + 'static,
        B: Carrier + 'static,
    {
        let (a, b) = within("the carriers connect", factory()).await;
        let config = Arc::new(config);
        let (a, driver_a) = Connection::over(a, Arc::clone(&config));
        let (b, driver_b) = Connection::over(b, config);
        Self {
            a,
            b,
            drivers: [tokio::spawn(driver_a), tokio::spawn(driver_b)],
        }
    }

    /// Opens a substream from `a`, and reads the first byte, which announces it to the peer.
    pub(super) async fn substream(&self) -> (Substream, Substream) {
        let mut here = within("open", self.a.open("/echo/1.0.0")).await.unwrap();
        here.write_all(b"!").await.unwrap();
        let there = within("accept", self.b.accept()).await.unwrap();
        let mut there = there.expect("the connection is open");
        let mut first = [0];
        within("the first byte", there.read_exact(&mut first))
            .await
            .unwrap();
        assert_eq!(&first, b"!");
        (here, there)
    }

    /// Waits until neither connection has a substream, closes them, and checks that nothing is
    /// left.
    pub(super) async fn finish(self) {
        let idle = async {
            while self.a.stats().substreams + self.b.stats().substreams > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(TIMEOUT, idle).await.is_err() {
            panic!(
                "substreams are left: {:?} {:?}",
                self.a.stats(),
                self.b.stats()
            );
        }
        within("close", self.a.close()).await;
        assert_eq!(
            within("the peer's end", self.b.closed()).await,
            ConnectionError::ClosedByPeer
        );
        assert!(within("accept", self.b.accept()).await.unwrap().is_none());
        assert!(self.a.is_idle() && self.b.is_idle());
        assert_eq!((self.a.stats().unread, self.b.stats().unread), (0, 0));
        for driver in self.drivers {
            within("a driver ends", driver).await.unwrap();
        }
    }
}

/// Echoes every substream of a connection.
pub(super) fn serve_echo(connection: Connection) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(Some(substream)) = connection.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = substream.into_split();
                // A reset by the peer ends this with an error, which some cases provoke.
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    let _ = write.finish().await;
                }
            });
        }
    })
}

pub(super) async fn echo(connection: &Connection, data: Vec<u8>) {
    let substream = connection.open("/echo/1.0.0").await.unwrap();
    let (mut read, mut write) = substream.into_split();
    let (back, ()) = tokio::join!(
        async {
            let mut back = Vec::new();
            read.read_to_end(&mut back).await.map(|_| back)
        },
        async {
            write.write_all(&data).await.unwrap();
            assert_eq!(write.finish().await.unwrap(), Finished::Acked);
        }
    );
    let back = back.unwrap();
    assert!(
        back == data,
        "{} bytes of {} came back",
        back.len(),
        data.len()
    );
}

fn source(error: &io::Error) -> Option<&SubstreamError> {
    error.get_ref()?.downcast_ref()
}

macro_rules! case {
    ($(#[$doc:meta])* $name:ident, $pair:ident, $body:block) => {
        case!($(#[$doc])* $name, $pair, Negotiation::None, $body);
    };
    ($(#[$doc:meta])* $name:ident, $pair:ident, $negotiation:expr, $body:block) => {
        $(#[$doc])*
        pub async fn $name<F, Fut, A, B>(factory: F)
        where
            F: Fn() -> Fut,
            Fut: Future<Output = (A, B)>,
            A: Carrier + 'static,
            B: Carrier + 'static,
        {
            let $pair = Pair::connect(factory, $negotiation).await;
            $body
            $pair.finish().await;
        }
    };
}

/// `write_chunk` and `write_all`, mixed and in both directions, keep the order of the bytes.
pub async fn chunks_arrive_between_writes<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let pair = Pair::connect(factory, Negotiation::None).await;
    let (here, there) = pair.substream().await;
    let data = Bytes::from(pattern(400_000));
    let ((here_read, here_write), (there_read, there_write)) =
        (here.into_split(), there.into_split());
    let (a, b, at_a, at_b) = within("both directions", async {
        tokio::join!(
            send_chunks(here_write, data.clone()),
            send_chunks(there_write, data.slice(7..)),
            receive_chunks(here_read),
            receive_chunks(there_read),
        )
    })
    .await;
    assert_eq!((a.unwrap(), b.unwrap()), (Finished::Acked, Finished::Acked));
    assert!(at_b.unwrap() == data && at_a.unwrap() == data[7..]);
    pair.finish().await;
}

async fn send_chunks(mut writer: WriteHalf, mut rest: Bytes) -> io::Result<Finished> {
    let lengths = [1, 50_000, 700, 16_384, 3, 1200].into_iter().cycle();
    for (nth, length) in lengths.enumerate() {
        if rest.is_empty() {
            break;
        }
        let part = rest.split_to(length.min(rest.len()));
        if nth % 3 == 0 {
            writer.write_all(&part).await?;
        } else {
            writer.write_chunk(part).await?;
        }
    }
    Ok(writer.finish().await?)
}

async fn receive_chunks(mut reader: ReadHalf) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(chunk) = reader.read_chunk(10_000).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

case!(
    /// An echo of 300 000 bytes, closed by FIN and FIN_ACK in both directions.
    an_echo_comes_back, pair, {
        serve_echo(pair.b.clone());
        within("the echo", echo(&pair.a, pattern(300_000))).await;
    }
);

case!(
    /// multistream-select agrees on a protocol for each substream, and rejects an unknown one.
    protocols_are_negotiated, pair, Negotiation::MultistreamSelect, {
        serve_echo(pair.b.clone());
        within("the echo", echo(&pair.a, pattern(5000))).await;
        let refused = within("the rejection", pair.a.open("/unknown/1.0.0")).await;
        assert!(
            matches!(refused, Err(anabranch::OpenError::UnsupportedProtocol(_))),
            "{refused:?}"
        );
    }
);

case!(
    /// Row R-3: finishing one direction leaves the other open.
    each_direction_closes_by_itself, pair, {
        let (mut here, mut there) = pair.substream().await;
        assert_eq!(within("finish", here.finish()).await.unwrap(), Finished::Acked);
        let mut rest = Vec::new();
        within("the end", there.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
        there.write_all(&pattern(100_000)).await.unwrap();
        let closing = tokio::spawn(async move {
            let outcome = there.finish().await.unwrap();
            (there, outcome)
        });
        within("the answer", here.read_to_end(&mut rest)).await.unwrap();
        assert!(rest == pattern(100_000));
        let (_there, outcome) = within("finish", closing).await.unwrap();
        assert_eq!(outcome, Finished::Acked);
    }
);

case!(
    /// Row L-18: FINs that cross finish both directions.
    both_ends_may_finish_at_once, pair, {
        for _ in 0..10 {
            let (mut here, mut there) = pair.substream().await;
            let both = async { tokio::join!(here.finish(), there.finish()) };
            let (ours, theirs) = within("both finish", both).await;
            assert_eq!(ours.unwrap(), Finished::Acked);
            assert_eq!(theirs.unwrap(), Finished::Acked);
        }
    }
);

case!(
    /// A hundred echoes run concurrently.
    a_hundred_substreams_run_at_once, pair, {
        serve_echo(pair.b.clone());
        let mut echoes = Vec::new();
        for size in 0..100 {
            let connection = pair.a.clone();
            echoes.push(tokio::spawn(async move {
                echo(&connection, pattern(size * 97)).await;
            }));
        }
        for echo in echoes {
            within("an echo", echo).await.unwrap();
        }
    }
);

case!(
    /// Rows H-6 and H-8: small echoes complete beside a substream that is written without pause.
    a_big_writer_does_not_hold_up_a_small_echo, pair, {
        let (big, sink) = pair.substream().await;
        let stop = Arc::new(AtomicBool::new(false));
        let sinking = tokio::spawn(async move {
            let mut sink = sink;
            tokio::io::copy(&mut sink, &mut tokio::io::sink()).await
        });
        let writing = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut big = big;
                let block = pattern(16_000);
                let mut written = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    big.write_all(&block).await.unwrap();
                    written += block.len() as u64;
                }
                big.finish().await.unwrap();
                written
            }
        });
        serve_echo(pair.b.clone());
        for _ in 0..20 {
            within("a small echo", echo(&pair.a, pattern(100))).await;
        }
        assert!(!writing.is_finished(), "the big writer still writes");
        stop.store(true, Ordering::Relaxed);
        let written = within("the big writer", writing).await.unwrap();
        let read = within("the big reader", sinking).await.unwrap().unwrap();
        assert_eq!(read, written);
    }
);

case!(
    /// Row H-5: a substream that is not read stalls only its own writer.
    a_slow_reader_holds_up_only_its_own_writer, pair, {
        let (mut stalled, mut unread) = pair.substream().await;
        let writing = tokio::spawn(async move {
            stalled.write_all(&pattern(3_000_000)).await.unwrap();
            stalled.finish().await.unwrap()
        });
        serve_echo(pair.b.clone());
        for _ in 0..5 {
            within("a sibling's echo", echo(&pair.a, pattern(20_000))).await;
        }
        assert!(!writing.is_finished(), "the unread substream stalls its writer");
        let mut all = Vec::new();
        within("the slow reader", unread.read_to_end(&mut all)).await.unwrap();
        assert!(all == pattern(3_000_000));
        drop(unread);
        assert_eq!(within("finish", writing).await.unwrap(), Finished::Acked);
    }
);

case!(
    /// Row L-17: a RESET by either side ends the peer's reader and writer with its code.
    a_reset_ends_both_directions_with_its_code, pair, {
        for opener_resets in [true, false] {
            let (here, there) = pair.substream().await;
            let (resetting, mut reset) =
                if opener_resets { (here, there) } else { (there, here) };
            resetting.reset(77);
            let error = within("the reader", reset.read(&mut [0; 10])).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(
                matches!(source(&error), Some(SubstreamError::ResetByPeer(Some(77)))),
                "{error:?}"
            );
            let error = reset.write(b"x").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(reset.close_outcome(), Some(CloseOutcome::Reset(Some(77))));
            assert_eq!(resetting.close_outcome(), Some(CloseOutcome::Reset(Some(77))));
        }
    }
);

case!(
    /// Row L-16: STOP_SENDING ends the peer's writer with its code. The other direction stays
    /// open.
    a_stop_reaches_the_writer_with_its_code, pair, {
        let (mut here, mut there) = pair.substream().await;
        there.stop(5);
        let outcome = within("the stop", here.stopped()).await;
        assert_eq!(outcome, CloseOutcome::Stopped(Some(5)));
        let error = here.write(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        there.write_all(b"still here").await.unwrap();
        drop(there);
        let mut all = Vec::new();
        within("the other direction", here.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all, b"still here");
    }
);

case!(
    /// Row L-28: accepted data arrives, followed by FIN, whichever handles are dropped and in
    /// whatever order.
    what_was_written_arrives_whoever_is_dropped, pair, {
        let data = pattern(60_000);
        for halves_first_to_last in [["read", "write"], ["write", "read"], ["both", ""]] {
            for opener_writes in [true, false] {
                let (here, there) = pair.substream().await;
                let (mut writer, reader) =
                    if opener_writes { (here, there) } else { (there, here) };
                writer.write_all(&data).await.unwrap();
                let (mut reader, reader_writes) = reader.into_split();
                drop(reader_writes);
                if halves_first_to_last[0] == "both" {
                    drop(writer);
                } else {
                    let (read, write) = writer.into_split();
                    let (mut read, mut write) = (Some(read), Some(write));
                    for half in halves_first_to_last {
                        if half == "read" {
                            read = None;
                        } else {
                            write = None;
                        }
                        tokio::task::yield_now().await;
                    }
                    assert!(read.is_none() && write.is_none());
                }
                let mut all = Vec::new();
                within("all written data", reader.read_to_end(&mut all)).await.unwrap();
                assert!(all == data, "{halves_first_to_last:?}: {} bytes", all.len());
            }
        }
    }
);

case!(
    /// A close of the connection delivers all written data first. A reader then sees the end of the
    /// stream if its writer has finished, and an error otherwise, even if it reads late.
    closing_a_connection_delivers_what_was_written, pair, {
        let data = pattern(60_000);
        let (mut whole, mut reads_whole) = pair.substream().await;
        let (mut cut, mut reads_cut) = pair.substream().await;
        let (mut late, mut reads_late) = pair.substream().await;
        for writer in [&mut whole, &mut cut] {
            writer.write_all(&data).await.unwrap();
        }
        late.write_all(b"read late").await.unwrap();
        late.flush().await.unwrap();
        let reading = tokio::spawn(async move {
            let (mut all, mut part) = (Vec::new(), Vec::new());
            let (whole, cut) = tokio::join!(
                reads_whole.read_to_end(&mut all),
                reads_cut.read_to_end(&mut part)
            );
            whole.map(|_| (all, part, cut.expect_err("its writer has not finished")))
        });
        // `finish` is called before `close`: `join` polls in this order.
        let both = async { tokio::join!(whole.finish(), pair.a.close()) };
        let (finished, ()) = within("close", both).await;
        assert_eq!(finished, Ok(Finished::Acked));
        let (all, part, error) = within("the readers", reading).await.unwrap().unwrap();
        assert!(all == data, "{} bytes", all.len());
        assert!(part == data, "{} bytes", part.len());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        let mut part = Vec::new();
        let end = within("the late reader", reads_late.read_to_end(&mut part)).await;
        assert_eq!(part, b"read late", "{end:?}");
        assert!(end.is_err());
        for writer in [&mut cut, &mut late] {
            let error = within("the writer", writer.write(b"more")).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
            let finished = within("the writer's end", writer.finish()).await;
            let cause = ConnectionError::ClosedLocally;
            assert_eq!(finished, Err(FinishError::ConnectionLost(cause)));
        }
        let error = pair.a.open("/echo/1.0.0").await.unwrap_err();
        assert!(matches!(error, anabranch::OpenError::Connection(_)), "{error:?}");
        assert_eq!(pair.a.close_reason(), Some(ConnectionError::ClosedLocally));
    }
);

/// When the peer's driver is gone, every operation fails and none waits, on either side.
pub async fn a_peer_that_vanishes_ends_everything<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let pair = Pair::connect(factory, Negotiation::None).await;
    let (mut here, mut there) = pair.substream().await;
    there.write_all(b"last words").await.unwrap();
    let mut first = [0; 4];
    within("the peer's data", here.read_exact(&mut first))
        .await
        .unwrap();
    let (mut read, mut write) = here.into_split();
    let finishing = tokio::spawn(async move { (write.stopped().await, write.write(b"x").await) });
    let accepting = tokio::spawn({
        let connection = pair.a.clone();
        async move { connection.accept().await }
    });
    let [driver_a, driver_b] = pair.drivers;
    // Drops the driver and its carrier: the connection sends no close.
    driver_b.abort();
    let cause = within("the end", pair.a.closed()).await;
    let mut rest = Vec::new();
    let error = within("the reader", read.read_to_end(&mut rest))
        .await
        .unwrap_err();
    assert_eq!(
        rest, b" words",
        "data that has arrived is read before the error"
    );
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let (outcome, written) = within("the writer", finishing).await.unwrap();
    assert_eq!(outcome, CloseOutcome::Lost);
    assert!(
        matches!(
            written.unwrap_err().kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
        ),
        "the writer fails"
    );
    let accepted = within("accept", accepting).await.unwrap();
    assert_eq!(accepted.is_ok(), cause.is_orderly());
    assert!(pair.a.open("/echo/1.0.0").await.is_err());
    // The peer's own handles do not wait for the missing driver either.
    within("the other end", pair.b.closed()).await;
    let error = within("its reader", there.read(&mut [0; 10]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    within("the driver ends", driver_a).await.unwrap();
    drop(read);
    assert_eq!((pair.a.stats().substreams, pair.a.stats().unread), (0, 0));
    assert!(pair.a.is_idle() && pair.b.is_idle());
}
