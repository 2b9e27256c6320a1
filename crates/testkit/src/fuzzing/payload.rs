//! Payloads from and to a peer that sends arbitrary bytes as header, answer and receipt.
//!
//! Checked against the bytes that the peer really sent: the receiver passes on the bytes after the
//! header, a payload that counts as complete is complete, and nothing is left at the end.

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::peer::{Checked, Peer};
use super::{Input, in_virtual_time};
use crate::memory::{Faults, MemoryConfig, pair};
use anabranch::carrier::ChannelId;
use anabranch::connection::{Config, Connection, Negotiation};
use anabranch::events::{ConnectionInfo, Events, PayloadOutcome, PayloadProgress, SubstreamInfo};
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::payload::{PayloadConfig, PayloadError, Receiver, SendError, Sender, Sent};
use anabranch::substream::Substream;

/// Maximum steps of a session, which bounds the time of a long input.
const MAX_STEPS: usize = 60;

/// Longer than every timeout of a payload and of a close.
const LIMIT: Duration = Duration::from_secs(120);

/// Credit that suffices for everything a receiver sends.
const ENOUGH: u64 = 1000;

/// `PayloadConfig::max_total`. Small, so that a session exceeds it.
const MAX_TOTAL: u64 = 40_000;

/// Runs a session. Returns whether its payload was complete.
pub(super) fn run(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    if input.bool() {
        in_virtual_time(receive(input))
    } else {
        in_virtual_time(send(input))
    }
}

/// Counts the events of payloads: each beginning has to have one end.
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

/// An encoded integer field; empty for `None`.
fn number(field: u8, value: Option<u64>) -> Vec<u8> {
    let field = value.map(|value| [vec![field << 3], varint(value)].concat());
    field.unwrap_or_default()
}

/// An encoded field of bytes.
fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

/// An encoded message, preceded by its length.
fn framed(fields: &[Vec<u8>]) -> Vec<u8> {
    let body = fields.concat();
    [varint(body.len() as u64), body].concat()
}

/// The end of the message that begins at `from`, if it is complete.
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

/// The peer's side of the only substream.
struct Remote<'a> {
    input: Input<'a>,
    peer: Peer,
    channel: ChannelId,
    /// Stream bytes sent before FIN.
    sent: Vec<u8>,
    /// Bytes of the payload's content sent so far.
    content: usize,
    /// FIN was sent.
    fin: bool,
    /// The peer has done something that may end the substream, or delay the receipt.
    misbehaved: bool,
    /// Stream bytes received.
    received: Vec<u8>,
    /// FIN was received.
    received_fin: bool,
    /// The peer answers FIN with FIN_ACK; otherwise the wait for it times out.
    sends_fin_ack: bool,
    decoder: FrameDecoder,
}

impl<'a> Remote<'a> {
    fn new(mut input: Input<'a>, peer: Peer, channel: ChannelId) -> Self {
        Self {
            sends_fin_ack: input.below(4) != 3,
            input,
            peer,
            channel,
            sent: Vec::new(),
            content: 0,
            fin: false,
            misbehaved: false,
            received: Vec::new(),
            received_fin: false,
            decoder: FrameDecoder::new(),
        }
    }

    /// Sends stream bytes, in frames of a random length.
    fn send(&mut self, bytes: &[u8]) {
        let cut = usize::from(self.input.pick(&[4000_u16, 4000, 1, 7, 300]));
        for piece in bytes.chunks(cut) {
            let frame = Message::data(Bytes::copy_from_slice(piece)).encode();
            if self.fin {
                self.misbehaved |= self.peer.send(self.channel, &frame);
            } else if self.peer.send(self.channel, &frame) {
                self.sent.extend_from_slice(piece);
            } else {
                // Bytes are missing: the stream ends here for the model.
                self.fin = true;
                self.misbehaved = true;
            }
        }
    }

    /// Sends a message with a flag.
    fn send_flag(&mut self, message: &Message) {
        self.misbehaved |= message.flag != Some(Flag::Fin);
        self.fin |= message.flag == Some(Flag::Fin);
        self.peer.send(self.channel, &message.encode());
    }

    async fn run(&mut self, total: usize) {
        for _ in 0..MAX_STEPS {
            if self.input.is_empty() {
                break;
            }
            self.step(total).await;
            self.receive().await;
        }
        if self.input.bool() {
            self.send_flag(&Message::flag(Flag::Fin));
        }
        self.receive().await;
    }

    /// One action of the peer. `total` is the length of the payload sent to it, or 0.
    async fn step(&mut self, total: usize) {
        let choice = self.input.below(16);
        let pick_length = |input: &mut Input<'_>| {
            let length = input.pick(&[0, 100, 5000, 20_000]);
            input.pick(&[
                Some(length),
                Some(length),
                None,
                Some(length + 1),
                Some(u64::MAX),
            ])
        };
        let bytes = match choice {
            0 | 1 => {
                let length = pick_length(&mut self.input);
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
                let offset = pick_length(&mut self.input);
                let offset_here = offset.filter(|offset| *offset <= MAX_TOTAL).unwrap_or(0);
                self.content = offset_here as usize;
                framed(&[number(1, offset)])
            }
            7 => {
                let have = pick_length(&mut self.input);
                let prefix = usize::try_from(have.unwrap_or(0)).map_or(0, |have| have.min(total));
                let mut hash = hash(&content(prefix)).to_vec();
                hash.truncate(self.input.pick(&[32, 32, 31, 0]));
                framed(&[number(1, have), bytes_field(2, &hash)])
            }
            8 => framed(&[number(1, Some(total as u64))]),
            9 => {
                let credit = u64::from(self.input.u32()) >> self.input.below(32);
                self.misbehaved |= credit < ENOUGH;
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
                return self.send_flag(&flags[index]);
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
        self.send(&bytes);
    }

    async fn receive(&mut self) {
        self.peer.settle().await;
        for (_, bytes) in self.peer.received() {
            self.decoder.push(bytes);
            while let Some(message) = self.decoder.next_message().expect("valid frames") {
                self.received.extend_from_slice(&message.payload);
                if message.flag == Some(Flag::Fin) {
                    self.received_fin = true;
                    if self.sends_fin_ack {
                        let answer = Message::flag(Flag::FinAck).encode();
                        self.peer.send(self.channel, &answer);
                    }
                }
            }
        }
    }
}

/// A connection with one substream.
struct Session {
    connection: Connection,
    driver: JoinHandle<anabranch::connection::ConnectionError>,
    faults: Faults,
    counts: Arc<Counts>,
}

/// Connects, and opens a substream from the local side or from the peer.
async fn begin<'a>(mut input: Input<'a>, opens: bool) -> (Session, Substream, Remote<'a>) {
    let counts = Arc::new(Counts::default());
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config.events = Some(Arc::clone(&counts) as Arc<dyn Events>);
    let memory = match input.bool() {
        true => MemoryConfig::hostile(u64::from(input.u8())),
        false => MemoryConfig::default(),
    };
    let (a, b, faults) = pair(memory);
    let (connection, driver) = Connection::over(Checked::new(a), Arc::new(config));
    let driver = tokio::spawn(driver);
    let mut peer = Peer::new(b);
    let (substream, channel) = if opens {
        let opened = peer.drive(timeout(LIMIT, connection.open(""))).await;
        let substream = opened.expect("opening ends").expect("a channel is free");
        // Until the peer knows the channel, and can send on it.
        peer.drive(sleep(Duration::from_millis(200))).await;
        let channel = ChannelId::new(substream.id());
        (substream, channel)
    } else {
        let channel = peer.open();
        let accepted = peer.drive(timeout(LIMIT, connection.accept())).await;
        let accepted = accepted.expect("accepting ends").expect("no error");
        (accepted.expect("the connection is open"), channel)
    };
    let session = Session {
        connection,
        driver,
        faults,
        counts,
    };
    (session, substream, Remote::new(input, peer, channel))
}

impl Session {
    /// Closes the connection and checks that nothing is left.
    async fn finish(self, mut remote: Remote<'_>) {
        let connection = self.connection;
        remote.peer.drive(sleep(LIMIT)).await;
        let stats = connection.stats();
        assert_eq!((stats.substreams, stats.unread), (0, 0), "{stats:?}");
        let closing = timeout(LIMIT, connection.close());
        remote.peer.drive(closing).await.expect("closing ends");
        self.driver.await.expect("no panic");
        assert!(connection.is_idle());
        assert_eq!(self.faults.open_channels(), 0, "a channel is left");
        let counts = [&self.counts.begun, &self.counts.ended];
        let [begun, ended] = counts.map(|count| count.load(Ordering::Relaxed));
        assert_eq!(begun, ended, "each beginning has one end");
    }
}

/// What a receiver has reported.
#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    total: Option<u64>,
    hashed: bool,
    resumable: bool,
    resumed_from: usize,
    complete: bool,
}

async fn receive(mut input: Input<'_>) -> bool {
    let method = input.below(5);
    let have = input.pick(&[0, 0, 1, 100, 5000]);
    let assembled = input.pick(&[MAX_TOTAL, 5000, 0]);
    let (session, substream, mut remote) = begin(input, false).await;
    let receiver = Receiver::new(limits()).expect("valid");
    let received = Arc::new(Mutex::new(Received::default()));
    let receiving = tokio::spawn({
        let (receiver, received) = (receiver.clone(), Arc::clone(&received));
        async move {
            let mut payload = receiver.receive(substream).await?;
            let note =
                |change: &dyn Fn(&mut Received)| change(&mut received.lock().expect("no panic"));
            let (total, hashed) = (payload.total(), payload.is_hashed());
            let resumable = payload.is_resumable();
            assert!(total.is_none_or(|total| total <= MAX_TOTAL));
            assert!(payload.metadata().len() <= 100);
            note(&|received| {
                (received.total, received.hashed, received.resumable) = (total, hashed, resumable)
            });
            if have > 0 {
                let from = payload
                    .resume(have, &mut &content(have as usize)[..])
                    .await?;
                assert!(from == 0 || from == have);
                note(&|received| received.resumed_from = from as usize);
            }
            match method {
                0 => {
                    let all = payload.assemble(assembled).await?;
                    assert!(all.len() as u64 <= assembled);
                    note(&|received| received.bytes.extend_from_slice(&all));
                }
                1 => {
                    let mut all = Vec::new();
                    let received = payload.copy_to(&mut all).await;
                    note(&|received| received.bytes.extend_from_slice(&all));
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
                        note(&|received| received.bytes.extend_from_slice(&chunk));
                        if method == 3 && chunk.len() == 1 {
                            return Ok(());
                        }
                    }
                }
            }
            note(&|received| received.complete = true);
            Ok::<_, PayloadError>(())
        }
    });
    remote.run(0).await;
    let ended = remote.peer.drive(timeout(LIMIT, receiving)).await;
    let result = ended.expect("it ends in time").expect("no panic");
    // Until everything in flight has arrived, above all the receipt.
    remote.peer.drive(sleep(Duration::from_millis(200))).await;
    remote.receive().await;
    assert_eq!(receiver.open(), 0);
    let complete = {
        let received = received.lock().expect("no panic");
        check_received(&received, &result, &remote);
        received.complete
    };
    session.finish(remote).await;
    complete
}

fn check_received(received: &Received, result: &Result<(), PayloadError>, remote: &Remote<'_>) {
    let context = || format!("{result:?}, {} bytes", received.bytes.len());
    // The content follows the header and, of a resumable payload, the offset.
    let start = end_of_message(&remote.sent, 0).and_then(|end| match received.resumable {
        true => end_of_message(&remote.sent, end),
        false => Some(end),
    });
    let sent = start.and_then(|start| remote.sent.get(start..));
    let Some(sent) = sent else {
        assert!(
            received.bytes.is_empty() && !received.complete,
            "{}",
            context()
        );
        return;
    };
    assert!(sent.starts_with(&received.bytes), "{}", context());
    if !received.complete {
        return;
    }
    let rest = sent.get(received.bytes.len()..).unwrap_or_default();
    let whole = [&content(received.resumed_from)[..], &received.bytes].concat();
    if received.hashed {
        assert!(rest == hash(&whole), "{}", context());
    } else {
        assert!(rest.is_empty(), "{}", context());
    }
    assert!(remote.fin, "complete before FIN");
    assert!(
        received
            .total
            .is_none_or(|total| total == whole.len() as u64)
    );
    if !remote.misbehaved {
        let receipt = framed(&[number(1, Some(whole.len() as u64))]);
        assert!(remote.received.ends_with(&receipt), "{}", context());
    }
}

async fn send(mut input: Input<'_>) -> bool {
    let total = input.pick(&[0, 1, 100, 5000, 20_000, 40_001]);
    let method = input.below(4);
    let hashed = input.bool();
    let metadata = input.pick(&[0, 1, 100, 101]);
    let (session, substream, mut remote) = begin(input, true).await;
    let data = content(total);
    let mut sender = Sender::new(substream, limits()).expect("valid");
    sender = sender.metadata(vec![b'm'; metadata]);
    if hashed {
        sender = sender.hashed();
    }
    let sending = tokio::spawn({
        let data = data.clone();
        async move {
            match method {
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
    remote.run(total).await;
    let sent = remote.peer.drive(timeout(LIMIT, sending)).await;
    let result = sent.expect("it ends in time").expect("no panic");
    remote.peer.drive(sleep(Duration::from_millis(200))).await;
    remote.receive().await;
    check_sent(&data, method == 3, hashed || method == 3, &result, &remote);
    session.finish(remote).await;
    result.is_ok()
}

fn check_sent(
    data: &[u8],
    resumable: bool,
    hashed: bool,
    result: &Result<Sent, SendError>,
    remote: &Remote<'_>,
) {
    let context = || format!("{result:?}, {} bytes received", remote.received.len());
    let start = end_of_message(&remote.received, 0).and_then(|end| match resumable {
        true => end_of_message(&remote.received, end),
        false => Some(end),
    });
    let trailer = if hashed {
        hash(data).to_vec()
    } else {
        Vec::new()
    };
    let Some(body) = start.and_then(|start| remote.received.get(start..)) else {
        assert!(result.is_err(), "{}", context());
        return;
    };
    match result {
        Ok(sent) => {
            let from = usize::try_from(sent.resumed_from).expect("short");
            let expected = [&data[from..], &trailer].concat();
            assert!(body == expected, "{}", context());
            assert_eq!(sent.total, data.len() as u64);
            assert!(remote.received_fin, "{}", context());
            assert!(!remote.sent.is_empty(), "sent without a receipt");
        }
        // A prefix of the expected bytes, from any offset if it is resumable.
        Err(_) => {
            let begins_at = |from: usize| {
                let (content, rest) = body.split_at(body.len().min(data.len() - from));
                data[from..].starts_with(content) && trailer.starts_with(rest)
            };
            let last = if resumable { data.len() } else { 0 };
            assert!((0..=last).any(begins_at), "{}", context());
        }
    }
}
