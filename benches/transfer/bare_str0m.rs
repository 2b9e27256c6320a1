//! Two `str0m::Rtc` on two threads, with GSO and GRO and no other layer.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use str0m::channel::{ChannelConfig, ChannelId};
use str0m::config::{DtlsVersion, Fingerprint};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceCreds, Input, Output, Rtc, RtcConfig};

/// The default of `EndpointConfig::loopback_mtu`.
const MTU: usize = 1450;

/// Datagrams fed between two drains, as in anabranch.
const DATAGRAMS_PER_DRAIN: usize = 24;

/// A command to the sending thread.
struct Job {
    bytes: usize,
    message: usize,
}

/// A connected pair; the threads end when it is dropped.
pub(crate) struct Pair {
    jobs: Sender<Job>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pair {
    pub(crate) fn connect(budget: usize) -> Self {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let addresses = [0, 1].map(|i: usize| sockets[i].local_addr().expect("an address"));
        let (jobs, queue) = channel();
        let (up, is_up) = channel();
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut queue = Some(queue);
        for (index, socket) in sockets.into_iter().enumerate() {
            let client = index == 0;
            let mut side = Side::new(
                socket,
                addresses[index],
                addresses[1 - index],
                client,
                budget,
            );
            side.jobs = if client { queue.take() } else { None };
            side.received = Arc::clone(&received);
            let (stop, up) = (Arc::clone(&stop), up.clone());
            threads.push(std::thread::spawn(move || side.run(&stop, &up)));
        }
        for _ in 0..2 {
            is_up
                .recv_timeout(Duration::from_secs(10))
                .expect("both sides connect");
        }
        Self {
            jobs,
            received,
            stop,
            threads,
        }
    }

    /// Time until `bytes` have arrived.
    pub(crate) fn transfer(&self, bytes: usize, message: usize) -> Duration {
        self.received.store(0, Ordering::Release);
        let began = Instant::now();
        self.jobs
            .send(Job { bytes, message })
            .expect("the sender lives");
        while self.received.load(Ordering::Acquire) < bytes as u64 {
            std::thread::sleep(Duration::from_micros(200));
        }
        began.elapsed()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().expect("the thread ends");
        }
    }
}

struct Side {
    rtc: Rtc,
    channel: ChannelId,
    open: bool,
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    remote: SocketAddr,
    next: Instant,
    jobs: Option<Receiver<Job>>,
    left: usize,
    message: Vec<u8>,
    received: Arc<AtomicU64>,
    out: Vec<u8>,
    ends: Vec<usize>,
}

impl Side {
    fn new(
        socket: UdpSocket,
        local: SocketAddr,
        remote: SocketAddr,
        client: bool,
        budget: usize,
    ) -> Self {
        let now = Instant::now();
        let mut rtc = RtcConfig::new()
            .set_dtls_version(DtlsVersion::Auto)
            .set_ice_lite(!client)
            .set_fingerprint_verification(false)
            .set_mtu(MTU..=1500)
            .set_sctp_max_buffered_amount(budget)
            .build(now);
        rtc.add_local_candidate(Candidate::host(local, "udp").expect("a candidate"));
        rtc.add_remote_candidate(Candidate::host(remote, "udp").expect("a candidate"));
        let credentials = |name: &str| IceCreds {
            ufrag: name.repeat(4),
            pass: name.repeat(24),
        };
        let (own, other) = if client { ("a", "b") } else { ("b", "a") };
        let mut api = rtc.direct_api();
        api.set_local_ice_credentials(credentials(own));
        api.set_remote_ice_credentials(credentials(other));
        api.set_ice_controlling(client);
        api.set_remote_fingerprint(Fingerprint {
            hash_func: "sha-256".to_owned(),
            bytes: vec![0; 32],
        });
        api.start_dtls(client).expect("DTLS starts");
        api.start_sctp(client);
        let channel = api.create_data_channel(ChannelConfig {
            negotiated: Some(0),
            ..ChannelConfig::default()
        });
        let options = socket2::SockRef::from(&socket);
        let _ = options.set_recv_buffer_size(2 << 20);
        let _ = options.set_send_buffer_size(2 << 20);
        let state = UdpSocketState::new((&socket).into()).expect("socket options");
        Self {
            rtc,
            channel,
            open: false,
            socket,
            state,
            local,
            remote,
            next: now,
            jobs: None,
            left: 0,
            message: Vec::new(),
            received: Arc::default(),
            out: Vec::new(),
            ends: Vec::new(),
        }
    }

    fn run(mut self, stop: &AtomicBool, up: &Sender<()>) {
        let mut told = false;
        while !stop.load(Ordering::Acquire) {
            self.drain();
            if self.open && !told {
                told = true;
                up.send(()).expect("the bench waits");
            }
            if let Some(job) = self.jobs.as_ref().and_then(|jobs| jobs.try_recv().ok()) {
                self.left = job.bytes;
                self.message = vec![5; job.message];
            }
            while self.left > 0 {
                let Some(mut channel) = self.rtc.channel(self.channel) else {
                    break;
                };
                if !channel.write(true, &self.message).expect("a write") {
                    break;
                }
                self.left -= self.message.len();
                self.drain();
            }
            self.send();
            self.receive();
            if Instant::now() >= self.next {
                self.rtc
                    .handle_input(Input::Timeout(Instant::now()))
                    .expect("a timeout");
            }
        }
    }

    fn drain(&mut self) {
        loop {
            match self.rtc.poll_output().expect("str0m works") {
                Output::Timeout(at) => {
                    self.next = at;
                    return;
                }
                Output::Transmit(transmit) => {
                    self.out.extend_from_slice(&transmit.contents);
                    self.ends.push(self.out.len());
                }
                Output::Event(Event::ChannelOpen(..)) => self.open = true,
                Output::Event(Event::ChannelData(data)) => {
                    self.received
                        .fetch_add(data.data.len() as u64, Ordering::Release);
                }
                Output::Event(_) => {}
            }
        }
    }

    fn send(&mut self) {
        let max_segments = self.state.max_gso_segments();
        let (mut start, mut index) = (0, 0);
        while let Some(&first) = self.ends.get(index) {
            let size = first - start;
            let (mut end, mut count) = (first, 1);
            while let Some(&next) = self.ends.get(index + count) {
                if count >= max_segments || next - end > size || next - start > 65_000 {
                    break;
                }
                let shorter = next - end < size;
                end = next;
                count += 1;
                if shorter {
                    break;
                }
            }
            let transmit = Transmit {
                destination: self.remote,
                ecn: None,
                contents: &self.out[start..end],
                segment_size: (count > 1).then_some(size),
                src_ip: None,
            };
            while self
                .state
                .try_send((&self.socket).into(), &transmit)
                .is_err()
            {
                std::thread::yield_now();
            }
            start = end;
            index += count;
        }
        self.out.clear();
        self.ends.clear();
    }

    fn receive(&mut self) {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; 65_536]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut meta = [RecvMeta::default()];
            let mut slices = [IoSliceMut::new(buffer)];
            if self
                .state
                .recv((&self.socket).into(), &mut slices, &mut meta)
                .is_err()
            {
                // No datagram: yield, so that the other side can run.
                std::thread::yield_now();
                return;
            }
            let now = Instant::now();
            let [meta] = meta;
            for (index, datagram) in buffer[..meta.len].chunks(meta.stride.max(1)).enumerate() {
                if index % DATAGRAMS_PER_DRAIN == DATAGRAMS_PER_DRAIN - 1 {
                    self.drain();
                }
                if let Ok(receive) = Receive::new(Protocol::Udp, meta.addr, self.local, datagram) {
                    let _ = self.rtc.handle_input(Input::Receive(now, receive));
                }
            }
        });
    }
}
