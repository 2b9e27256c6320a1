//! A flow: two associations, of which one sends.

use std::time::{Duration, Instant};

use anabranch_sctp::{Association, Config, CongestionControl, Event, Ppid};
use bytes::Bytes;

/// The end that sends data.
pub(crate) const SENDER: usize = 0;

/// The only stream.
const STREAM: u16 = 0;

/// Length of the messages of a flow.
const MESSAGE: usize = 16 * 1024;

/// Unacknowledged bytes that a sender with unlimited data keeps written: the deepest path holds
/// 3.5 MB, and several times that waits for the repair of gaps.
const WRITTEN: usize = 32 * 1024 * 1024;

/// What the receiver may hold. It reads at once, so that only what follows a gap uses it.
const RECEIVE_BUFFER: usize = 64 * 1024 * 1024;

/// A controller with the packets it is used with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) control: CongestionControl,
    pub(crate) max_packet: usize,
    /// Longer ones to look for.
    pub(crate) packet_sizes: &'static [usize],
}

/// What a flow has to send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// Always more than the path takes.
    Unlimited,
    /// This many bytes.
    Transfer(usize),
    /// This many bytes at the start of each period.
    Periodic(usize, Duration),
}

/// Which flow starts when, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowConfig {
    pub(crate) contender: Contender,
    pub(crate) start: Duration,
    /// Index of the link that carries the data.
    pub(crate) link: usize,
    pub(crate) load: Load,
    /// What the round trip of this flow exceeds that of the links by.
    pub(crate) extra_rtt: Duration,
}

impl FlowConfig {
    /// A flow with unlimited data over the first link.
    pub(crate) fn new(contender: Contender, start: Duration) -> Self {
        Self {
            contender,
            start,
            link: 0,
            load: Load::Unlimited,
            extra_rtt: Duration::ZERO,
        }
    }
}

/// A flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) config: FlowConfig,
    pub(crate) ends: [Association; 2],
    /// When each end is woken, if that is scheduled.
    pub(crate) wakes: [Option<Duration>; 2],
    /// Written bytes in excess of which nothing is written.
    due: usize,
    written: usize,
    read: usize,
    /// When the sender was established.
    pub(crate) connected_at: Option<Duration>,
    /// When the receiver had read a whole transfer.
    pub(crate) completed_at: Option<Duration>,
    message: Bytes,
}

impl Flow {
    pub(crate) fn new(config: FlowConfig) -> Self {
        let mut settings = Config::default();
        settings.max_packet = config.contender.max_packet;
        settings.packet_sizes = config.contender.packet_sizes;
        settings.receive_buffer = RECEIVE_BUFFER;
        settings.congestion = config.contender.control;
        Self {
            config,
            ends: [Association::new(settings), Association::new(settings)],
            wakes: [None; 2],
            due: match config.load {
                Load::Transfer(bytes) => bytes,
                Load::Unlimited | Load::Periodic(..) => 0,
            },
            written: 0,
            read: 0,
            connected_at: None,
            completed_at: None,
            message: Bytes::from(vec![0; MESSAGE]),
        }
    }

    /// The link into which an end sends.
    pub(crate) fn link_from(&self, end: usize) -> usize {
        if end == SENDER {
            self.config.link
        } else {
            1 - self.config.link
        }
    }

    /// More is due to be written.
    pub(crate) fn add_due(&mut self, bytes: usize) {
        self.due += bytes;
    }

    /// Handles the events of an end, reads everything, and writes what is due.
    pub(crate) fn run_application(&mut self, end: usize, now: Duration) {
        while let Some(event) = self.ends[end].next_event() {
            match event {
                Event::Connected if end == SENDER => {
                    self.connected_at = Some(now);
                    assert!(self.ends[SENDER].open_stream(STREAM));
                }
                Event::Readable { id } => {
                    while let Some(message) = self.ends[end].read(id) {
                        self.read += message.bytes.len();
                    }
                    if matches!(self.config.load, Load::Transfer(bytes) if self.read == bytes) {
                        self.completed_at.get_or_insert(now);
                    }
                }
                Event::Ended(reason) => panic!("{} has ended: {reason:?}", self.name()),
                _ => {}
            }
        }
        if end == SENDER && self.connected_at.is_some() {
            self.write();
        }
    }

    fn write(&mut self) {
        loop {
            let length = match self.config.load {
                Load::Unlimited => MESSAGE,
                Load::Transfer(_) | Load::Periodic(..) => MESSAGE.min(self.due - self.written),
            };
            if length == 0 || self.ends[SENDER].total_unacknowledged() + length > WRITTEN {
                return;
            }
            let message = self.message.slice(..length);
            assert!(self.ends[SENDER].write(STREAM, message, Ppid::Binary));
            self.written += length;
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.config.contender.name
    }

    /// State of the controller, for humans.
    pub(crate) fn state(&self) -> String {
        let sender = &self.ends[SENDER];
        let packets = sender.congestion().cwnd() / self.config.contender.max_packet;
        let srtt = sender.srtt().unwrap_or_default().as_secs_f64() * 1e3;
        format!(
            "cwnd {packets}, srtt {srtt:.1} ms, {:?}",
            sender.congestion()
        )
    }

    /// When an end has to be woken, as time since `epoch`.
    pub(crate) fn next_timeout(&self, end: usize, epoch: Instant) -> Option<Duration> {
        let at = self.ends[end].next_timeout()?;
        Some(at.saturating_duration_since(epoch))
    }
}
