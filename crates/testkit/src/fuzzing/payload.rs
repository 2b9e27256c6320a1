//! Payloads towards a peer that says anything in the place of a header, of an answer and of a receipt.
//!
//! Held against what the peer really said: bytes that are handed over are those behind its header, a payload
//! that counts as whole is whole, and in the end nothing is left.

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::peer::{Peer, Watched};
use super::{Input, in_virtual_time};
use crate::memory::{Faults, MemoryConfig, pair};
use anabranch::carrier::ChannelId;
use anabranch::connection::{Config, Connection, Negotiation};
use anabranch::events::{ConnectionInfo, Events, PayloadOutcome, PayloadProgress, SubstreamInfo};
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::payload::{PayloadConfig, PayloadError, Receiver, SendError, Sender, Sent};
use anabranch::substream::Substream;

const MAX_STEPS: usize = 60;

/// Longer than every timeout of a payload and of a close.
const LIMIT: Duration = Duration::from_secs(120);

/// Credit for all that a receiver says.
const ENOUGH: u64 = 1000;

/// Longest payload. Small, so that a session exceeds it.
const MAX_TOTAL: u64 = 40_000;

/// Whether the payload came to be complete.
pub(super) fn run(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    if input.bool() {
        in_virtual_time(receive(input))
    } else {
        in_virtual_time(send(input))
    }
}

/// As many ends as beginnings.
#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Events for Counts {
    fn payload_begun(&self, _: &ConnectionInfo, _: SubstreamInfo, _: PayloadProgress) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn payload_ended(
        &self,
        _: &ConnectionInfo,
        _: SubstreamInfo,
        _: PayloadProgress,
        _: PayloadOutcome<'_>,
    ) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

fn limits() -> PayloadConfig {
    let mut limits = PayloadConfig::default();
    limits.max_total = MAX_TOTAL;
    limits.max_metadata = 100;
    limits.idle_timeout = Duration::from_secs(5);
    limits.time_limit = Duration::from_secs(30);
    limits.max_open = 1;
    limits.max_open_per_connection = 1;
    limits.progress_interval = 1000;
    limits
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field of a number; none if it is absent.
fn number(field: u8, value: Option<u64>) -> Vec<u8> {
    let field = value.map(|value| [vec![field << 3], varint(value)].concat());
    field.unwrap_or_default()
}

fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

/// A message behind its length.
fn framed(fields: &[Vec<u8>]) -> Vec<u8> {
    let body = fields.concat();
    [varint(body.len() as u64), body].concat()
}

/// Where the message ends that begins at `from`, if it is all there.
fn end_of_message(bytes: &[u8], from: usize) -> Option<usize> {
    let mut length = 0_u64;
    for (index, byte) in bytes.get(from..)?.iter().take(9).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let end = (from + index + 1).checked_add(usize::try_from(length).ok()?)?;
            return (end <= bytes.len()).then_some(end);
        }
    }
    None
}

/// The peer: what it has said and heard on the one substream there is.
struct Other<'a> {
    input: Input<'a>,
    peer: Peer,
    channel: ChannelId,
    /// Bytes of the stream before FIN.
    said: Vec<u8>,
    /// The content that it has sent so far.
    content: usize,
    fin: bool,
    /// It did what may end the substream for another reason than the payload, or hold up the receipt.
    rude: bool,
    heard: Vec<u8>,
    heard_fin: bool,
    /// It confirms a FIN, which else is given up on.
    confirms: bool,
    decoder: FrameDecoder,
}

impl<'a> Other<'a> {
    fn new(mut input: Input<'a>, peer: Peer, channel: ChannelId) -> Self {
        Self {
            confirms: input.below(4) != 3,
            input,
            peer,
            channel,
            said: Vec::new(),
            content: 0,
            fin: false,
            rude: false,
            heard: Vec::new(),
            heard_fin: false,
            decoder: FrameDecoder::new(),
        }
    }

    /// Says bytes of the stream, cut anywhere.
    fn say(&mut self, bytes: &[u8]) {
        let cut = usize::from(self.input.pick(&[4000_u16, 4000, 1, 7, 300]));
        for piece in bytes.chunks(cut) {
            let frame = Message::data(Bytes::copy_from_slice(piece)).encode();
            if self.fin {
                self.rude |= self.peer.send(self.channel, &frame);
            } else if self.peer.send(self.channel, &frame) {
                self.said.extend_from_slice(piece);
            } else {
                // Behind a gap everything is different.
                self.fin = true;
                self.rude = true;
            }
        }
    }

    fn flag(&mut self, message: &Message) {
        self.rude |= message.flag != Some(Flag::Fin);
        self.fin |= message.flag == Some(Flag::Fin);
        self.peer.send(self.channel, &message.encode());
    }

    async fn run(&mut self, total: usize) {
        for _ in 0..MAX_STEPS {
            if self.input.is_empty() {
                break;
            }
            self.step(total).await;
            self.hear().await;
        }
        if self.input.bool() {
            self.flag(&Message::flag(Flag::Fin));
        }
        self.hear().await;
    }

    /// `total` is what the other side sends.
    async fn step(&mut self, total: usize) {
        let choice = self.input.below(16);
        let small = |input: &mut Input<'_>| {
            let right = input.pick(&[0, 100, 5000, 20_000]);
            input.pick(&[
                Some(right),
                Some(right),
                None,
                Some(right + 1),
                Some(u64::MAX),
            ])
        };
        let bytes = match choice {
            0 | 1 => {
                let length = small(&mut self.input);
                let kind = self.input.pick(&[None, Some(1), Some(1), Some(0), Some(9)]);
                let resumable = self.input.pick(&[None, Some(1), Some(0)]);
                let metadata = self.input.pick(&[0, 1, 100, 101, 5000]);
                framed(&[
                    number(1, length),
                    bytes_field(2, &vec![b'm'; metadata]),
                    number(3, kind),
                    number(4, resumable),
                ])
            }
            2..=4 => {
                let length = self.input.pick(&[100, 5000, 1, 20_000, 4900]);
                let all = content(self.content + length);
                let now = all.get(self.content..).unwrap_or_default().to_vec();
                self.content += length;
                now
            }
            5 => hash(&content(self.content)).to_vec(),
            6 => {
                let offset = small(&mut self.input);
                let offset_here = offset.filter(|offset| *offset <= MAX_TOTAL).unwrap_or(0);
                self.content = offset_here as usize;
                framed(&[number(1, offset)])
            }
            7 => {
                let have = small(&mut self.input);
                let prefix = usize::try_from(have.unwrap_or(0)).map_or(0, |have| have.min(total));
                let mut hash = hash(&content(prefix)).to_vec();
                hash.truncate(self.input.pick(&[32, 32, 31, 0]));
                framed(&[number(1, have), bytes_field(2, &hash)])
            }
            8 => framed(&[number(1, Some(total as u64))]),
            9 => {
                let credit = u64::from(self.input.u32()) >> self.input.below(32);
                self.rude |= credit < ENOUGH;
                let credit = Message::credit(credit).encode();
                self.peer.send(self.channel, &credit);
                return;
            }
            10 => {
                let code = u32::from(self.input.u16());
                let flags = [
                    Message::flag(Flag::Fin),
                    Message::flag(Flag::Fin),
                    Message::flag(Flag::FinAck),
                    Message::reset(code),
                    Message::stop_sending(code),
                ];
                let index = self.input.below(flags.len());
                return self.flag(&flags[index]);
            }
            11 => {
                let time = Duration::from_millis(self.input.pick(&[1, 1000, 4900, 6000]));
                return self.peer.drive(sleep(time)).await;
            }
            _ => {
                let length = usize::from(self.input.u8());
                self.input.take(length).to_vec()
            }
        };
        self.say(&bytes);
    }

    async fn hear(&mut self) {
        self.peer.settle().await;
        for (_, bytes) in self.peer.received() {
            self.decoder.push(bytes);
            while let Some(message) = self.decoder.next_message().expect("our frames are sound") {
                self.heard.extend_from_slice(&message.payload);
                if message.flag == Some(Flag::Fin) {
                    self.heard_fin = true;
                    if self.confirms {
                        let answer = Message::flag(Flag::FinAck).encode();
                        self.peer.send(self.channel, &answer);
                    }
                }
            }
        }
    }
}

/// A connection with one substream on it.
struct Session {
    connection: Connection,
    driver: JoinHandle<anabranch::connection::ConnectionError>,
    faults: Faults,
    counts: Arc<Counts>,
}

async fn begin<'a>(mut input: Input<'a>, ours: bool) -> (Session, Substream, Other<'a>) {
    let counts = Arc::new(Counts::default());
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config.events = Some(Arc::clone(&counts) as Arc<dyn Events>);
    let memory = match input.bool() {
        true => MemoryConfig::hostile(u64::from(input.u8())),
        false => MemoryConfig::default(),
    };
    let (a, b, faults) = pair(memory);
    let (connection, driver) = Connection::over(Watched::new(a), Arc::new(config));
    let driver = tokio::spawn(driver);
    let mut peer = Peer::new(b);
    let (substream, channel) = if ours {
        let opened = peer.drive(timeout(LIMIT, connection.open(""))).await;
        let substream = opened.expect("opening ends").expect("a channel is free");
        // Until then the peer can not say anything on it.
        peer.drive(sleep(Duration::from_millis(200))).await;
        let channel = ChannelId::new(substream.id());
        (substream, channel)
    } else {
        let channel = peer.open();
        let accepted = peer.drive(timeout(LIMIT, connection.accept())).await;
        let accepted = accepted.expect("it comes").expect("the connection lives");
        (accepted.expect("open"), channel)
    };
    let session = Session {
        connection,
        driver,
        faults,
        counts,
    };
    (session, substream, Other::new(input, peer, channel))
}

impl Session {
    /// Nothing is left.
    async fn end(self, mut other: Other<'_>) {
        let connection = self.connection;
        other.peer.drive(sleep(LIMIT)).await;
        let stats = connection.stats();
        assert_eq!((stats.substreams, stats.unread), (0, 0), "{stats:?}");
        let closing = timeout(LIMIT, connection.close());
        other.peer.drive(closing).await.expect("closing ends");
        self.driver.await.expect("no panic");
        assert!(connection.is_idle());
        assert_eq!(self.faults.open_channels(), 0, "a channel is left");
        let counts = [&self.counts.begun, &self.counts.ended];
        let [begun, ended] = counts.map(|count| count.load(Ordering::Relaxed));
        assert_eq!(begun, ended, "each beginning has one end");
    }
}

/// What a receiver has handed over.
#[derive(Debug, Default)]
struct Got {
    bytes: Vec<u8>,
    total: Option<u64>,
    hashed: bool,
    resumable: bool,
    resumed_from: usize,
    complete: bool,
}

async fn receive(mut input: Input<'_>) -> bool {
    let way = input.below(5);
    let have = input.pick(&[0, 0, 1, 100, 5000]);
    let assembled = input.pick(&[MAX_TOTAL, 5000, 0]);
    let (session, substream, mut other) = begin(input, false).await;
    let receiver = Receiver::new(limits()).expect("valid");
    let got = Arc::new(Mutex::new(Got::default()));
    let receiving = tokio::spawn({
        let (receiver, got) = (receiver.clone(), Arc::clone(&got));
        async move {
            let mut payload = receiver.receive(substream).await?;
            let note = |change: &dyn Fn(&mut Got)| change(&mut got.lock().expect("no panic"));
            let (total, hashed) = (payload.total(), payload.is_hashed());
            let resumable = payload.is_resumable();
            assert!(total.is_none_or(|total| total <= MAX_TOTAL));
            assert!(payload.metadata().len() <= 100);
            note(&|got| (got.total, got.hashed, got.resumable) = (total, hashed, resumable));
            if have > 0 {
                let from = payload
                    .resume(have, &mut &content(have as usize)[..])
                    .await?;
                assert!(from == 0 || from == have);
                note(&|got| got.resumed_from = from as usize);
            }
            match way {
                0 => {
                    let all = payload.assemble(assembled).await?;
                    assert!(all.len() as u64 <= assembled);
                    note(&|got| got.bytes.extend_from_slice(&all));
                }
                1 => {
                    let mut all = Vec::new();
                    let received = payload.copy_to(&mut all).await;
                    note(&|got| got.bytes.extend_from_slice(&all));
                    let received = received?;
                    assert_eq!(received.total - received.resumed_from, all.len() as u64);
                }
                2 => {
                    payload.cancel(5);
                    return Ok(());
                }
                _ => {
                    let mut stream = payload.into_stream();
                    while let Some(chunk) = stream.next().await {
                        let chunk = chunk?;
                        note(&|got| got.bytes.extend_from_slice(&chunk));
                        if way == 3 && chunk.len() == 1 {
                            return Ok(());
                        }
                    }
                }
            }
            note(&|got| got.complete = true);
            Ok::<_, PayloadError>(())
        }
    });
    other.run(0).await;
    let received = other.peer.drive(timeout(LIMIT, receiving)).await;
    let result = received.expect("it ends in time").expect("no panic");
    // What is under way arrives, the receipt above all.
    other.peer.drive(sleep(Duration::from_millis(200))).await;
    other.hear().await;
    assert_eq!(receiver.open(), 0);
    let complete = {
        let got = got.lock().expect("no panic");
        check_received(&got, &result, &other);
        got.complete
    };
    session.end(other).await;
    complete
}

fn check_received(got: &Got, result: &Result<(), PayloadError>, other: &Other<'_>) {
    let context = || format!("{result:?}, {} bytes", got.bytes.len());
    // The header, and where it begins if that was asked for.
    let start = end_of_message(&other.said, 0).and_then(|end| match got.resumable {
        true => end_of_message(&other.said, end),
        false => Some(end),
    });
    let sent = start.and_then(|start| other.said.get(start..));
    let Some(sent) = sent else {
        assert!(got.bytes.is_empty() && !got.complete, "{}", context());
        return;
    };
    assert!(sent.starts_with(&got.bytes), "{}", context());
    if !got.complete {
        return;
    }
    let rest = sent.get(got.bytes.len()..).unwrap_or_default();
    let whole = [&content(got.resumed_from)[..], &got.bytes].concat();
    if got.hashed {
        assert!(rest == hash(&whole), "{}", context());
    } else {
        assert!(rest.is_empty(), "{}", context());
    }
    assert!(other.fin, "complete before its end");
    assert!(got.total.is_none_or(|total| total == whole.len() as u64));
    if !other.rude {
        let receipt = framed(&[number(1, Some(whole.len() as u64))]);
        assert!(other.heard.ends_with(&receipt), "{}", context());
    }
}

async fn send(mut input: Input<'_>) -> bool {
    let total = input.pick(&[0, 1, 100, 5000, 20_000, 40_001]);
    let way = input.below(4);
    let hashed = input.bool();
    let metadata = input.pick(&[0, 1, 100, 101]);
    let (session, substream, mut other) = begin(input, true).await;
    let data = content(total);
    let mut sender = Sender::new(substream, limits()).expect("valid");
    sender = sender.metadata(vec![b'm'; metadata]);
    if hashed {
        sender = sender.hashed();
    }
    let sending = tokio::spawn({
        let data = data.clone();
        async move {
            match way {
                0 => sender.send_bytes(data.into()).await,
                1 => sender.send_reader(Cursor::new(data), None).await,
                2 => {
                    sender
                        .send_reader(Cursor::new(data), Some(total as u64))
                        .await
                }
                _ => sender.send_resumable(Cursor::new(data)).await,
            }
        }
    });
    other.run(total).await;
    let sent = other.peer.drive(timeout(LIMIT, sending)).await;
    let result = sent.expect("it ends in time").expect("no panic");
    other.peer.drive(sleep(Duration::from_millis(200))).await;
    other.hear().await;
    check_sent(&data, way == 3, hashed || way == 3, &result, &other);
    session.end(other).await;
    result.is_ok()
}

fn check_sent(
    data: &[u8],
    resumable: bool,
    hashed: bool,
    result: &Result<Sent, SendError>,
    other: &Other<'_>,
) {
    let context = || format!("{result:?}, {} bytes were heard", other.heard.len());
    let start = end_of_message(&other.heard, 0).and_then(|end| match resumable {
        true => end_of_message(&other.heard, end),
        false => Some(end),
    });
    let trailer = if hashed {
        hash(data).to_vec()
    } else {
        Vec::new()
    };
    let Some(body) = start.and_then(|start| other.heard.get(start..)) else {
        assert!(result.is_err(), "{}", context());
        return;
    };
    match result {
        Ok(sent) => {
            let from = usize::try_from(sent.resumed_from).expect("short");
            let expected = [&data[from..], &trailer].concat();
            assert!(body == expected, "{}", context());
            assert_eq!(sent.total, data.len() as u64);
            assert!(other.heard_fin, "{}", context());
            assert!(!other.said.is_empty(), "a receipt has a byte at least");
        }
        // From somewhere on, what should come.
        Err(_) => {
            let comes_from = |from: usize| {
                let (now, later) = body.split_at(body.len().min(data.len() - from));
                data[from..].starts_with(now) && trailer.starts_with(later)
            };
            let last = if resumable { data.len() } else { 0 };
            assert!((0..=last).any(comes_from), "{}", context());
        }
    }
}
