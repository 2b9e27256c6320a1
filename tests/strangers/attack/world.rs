//! The shared state of an attack: the ledger of bytes, and the knowledge of the attacker.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anabranch::{Address, Endpoint};
use anabranch_testkit::simulator::{Network, TappedDatagram, Verdict};
use bytes::Bytes;
use is::stun::StunMessage;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::plan::Plan;
use super::victims;
use crate::harness::{STUN_REQUEST, STUN_SUCCESS};

/// Maximum datagrams of others that the attacker stores.
const MAX_SEEN: usize = 96;

/// Memory of a sleeping task beside its datagram.
const TASK: usize = 512;

/// The peer and the listener of the attacker.
pub(super) const MOLE: [u8; 4] = [10, 6, 6, 6];
pub(super) const TRAP: [u8; 4] = [10, 7, 7, 7];

/// A host of the attacker that begins handshakes and drops all answers.
pub(super) const DEAF: [u8; 4] = [10, 8, 8, 8];

/// The last address byte of an honest neighbour, of the dialler of the malicious listener, and of
/// the first newcomer.
pub(super) const NEIGHBOUR: u8 = 2;
pub(super) const LURED: u8 = 3;
pub(super) const NEWCOMERS: u8 = 10;

/// A datagram that the attacker has copied.
#[derive(Debug, Clone)]
pub(super) struct Copied {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) contents: Vec<u8>,
}

/// The credentials of a connection, derived from the USERNAME of its checks.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    pub(super) dialler: SocketAddr,
    pub(super) listener: SocketAddr,
    pub(super) server_ufrag: String,
    pub(super) client_ufrag: String,
}

impl Credentials {
    /// The password of the dialler.
    pub(super) fn client_password(&self) -> &str {
        let v2 = self.server_ufrag.strip_prefix("libp2p+webrtc+v2/");
        v2.unwrap_or(&self.client_ufrag)
    }
}

/// Bytes from and to each address, as the listener and the diallers see them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    came: HashMap<SocketAddr, u64>,
    sent: HashMap<SocketAddr, u64>,
    /// Honest addresses that have answered a check, with the password of the peer.
    answered: HashSet<SocketAddr>,
    /// The first violated invariant.
    pub(super) broken: Option<String>,
    /// Datagrams of the attacker.
    pub(super) forged: u64,
    /// Datagrams sent to addresses that have answered nothing.
    pub(super) reflected: u64,
    /// Memory of datagrams that the attacker delays, and its peak.
    delayed: usize,
    most_delayed: usize,
}

impl Ledger {
    fn came(&mut self, from: SocketAddr, bytes: usize) {
        *self.came.entry(from).or_default() += bytes as u64;
    }

    fn sent(&mut self, to: SocketAddr, bytes: usize) {
        let sent = self.sent.entry(to).or_default();
        *sent += bytes as u64;
        if self.answered.contains(&to) {
            return;
        }
        self.reflected += 1;
        let (sent, came) = (*sent, self.came.get(&to).copied().unwrap_or_default());
        if sent > 3 * came {
            self.breaks(format!("{sent} bytes went to {to}, from which {came} came"));
        }
    }

    fn delays(&mut self, bytes: usize) {
        self.delayed += bytes + TASK;
        self.most_delayed = self.most_delayed.max(self.delayed);
    }

    /// The part of the counted memory that belongs to the attacker and to this.
    pub(super) fn own_memory(&self) -> usize {
        let entry = size_of::<(SocketAddr, u64)>() + 1;
        let tables = (self.came.capacity() + self.sent.capacity()) * entry * 8 / 7;
        tables + self.most_delayed
    }

    pub(super) fn breaks(&mut self, promise: String) {
        self.broken.get_or_insert(promise);
    }
}

#[derive(Debug)]
struct Learnt {
    ledger: Ledger,
    seen: VecDeque<Copied>,
    credentials: HashMap<SocketAddr, Credentials>,
    /// Addresses of honest diallers.
    diallers: Vec<SocketAddr>,
    /// Hosts whose handshakes are complete.
    settled: HashSet<IpAddr>,
    /// The addresses of the malicious peer.
    mole: Option<SocketAddr>,
    hello: Option<Vec<u8>>,
    /// Ports of the deaf host that have sent a ClientHello.
    said: HashSet<SocketAddr>,
    rng: StdRng,
}

impl Learnt {
    /// Whether the deaf host may send this: one ClientHello, after which the listener retransmits
    /// its flight until it gives up.
    fn is_said(&mut self, datagram: &TappedDatagram) -> bool {
        if !is_record(datagram) {
            return !self.said.contains(&datagram.source);
        }
        self.said.insert(datagram.source)
    }
}

/// Whether this is DTLS (RFC 7983).
fn is_record(datagram: &TappedDatagram) -> bool {
    matches!(datagram.contents.first(), Some(20..))
}

/// A network with an attacked listener.
pub(super) struct World {
    pub(super) network: Network,
    pub(super) listening: SocketAddr,
    pub(super) plan: Plan,
    /// The deaf host, and the endpoint that dials from it.
    pub(super) deaf: (Endpoint, Arc<Semaphore>),
    /// Of the listener.
    pub(super) address: Address,
    learnt: Mutex<Learnt>,
}

impl World {
    /// Installs the tap between all hosts.
    pub(super) fn new(
        network: &Network,
        address: &Address,
        deaf: Endpoint,
        plan: Plan,
    ) -> Arc<Self> {
        let world = Arc::new(Self {
            network: network.clone(),
            listening: address.socket_addr(),
            deaf: (deaf, Arc::new(Semaphore::new(1))),
            address: address.clone(),
            learnt: Mutex::new(Learnt {
                ledger: Ledger::default(),
                seen: VecDeque::new(),
                credentials: HashMap::new(),
                diallers: Vec::new(),
                settled: HashSet::new(),
                mole: None,
                hello: None,
                said: HashSet::new(),
                rng: StdRng::seed_from_u64(!plan.seed),
            }),
            plan,
        });
        let tapping = Arc::clone(&world);
        network.set_tap(move |datagram| tapping.tap(datagram));
        world
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().expect("no panic")
    }

    pub(super) fn with_ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut self.learnt().ledger)
    }

    /// The handshake of this host is complete: from now on no datagram may harm it.
    pub(super) fn settle(&self, host: IpAddr) {
        self.learnt().settled.insert(host);
    }

    /// Sends a datagram of the attacker.
    pub(super) fn inject(&self, from: SocketAddr, to: SocketAddr, contents: impl Into<Bytes>) {
        self.inject_with(&mut self.learnt(), from, to, contents.into());
    }

    fn inject_with(&self, learnt: &mut Learnt, from: SocketAddr, to: SocketAddr, contents: Bytes) {
        learnt.ledger.forged += 1;
        if to == self.listening {
            learnt.ledger.came(from, contents.len());
        }
        self.network.inject(from, to, contents);
    }

    /// Sends it after a delay.
    pub(super) fn inject_later(
        self: &Arc<Self>,
        after: Duration,
        from: SocketAddr,
        to: SocketAddr,
        contents: Vec<u8>,
    ) {
        self.delay(&mut self.learnt(), after, [from, to], contents);
    }

    fn delay(
        self: &Arc<Self>,
        learnt: &mut Learnt,
        after: Duration,
        [from, to]: [SocketAddr; 2],
        contents: Vec<u8>,
    ) {
        learnt.ledger.delays(contents.len());
        let world = Arc::clone(self);
        tokio::spawn(async move {
            sleep(after).await;
            world.with_ledger(|ledger| ledger.delayed -= contents.len() + TASK);
            world.inject(from, to, contents);
        });
    }

    /// A copied datagram, and whether the handshakes of both its hosts are complete.
    pub(super) fn copied(&self, rng: &mut StdRng) -> Option<(Copied, bool)> {
        let learnt = self.learnt();
        let index = rng.random_range(0..learnt.seen.len().max(1));
        let copied = learnt.seen.get(index)?.clone();
        let ends = [copied.source, copied.destination];
        let dialler = ends.into_iter().find(|end| *end != self.listening)?;
        let settled = learnt.settled.contains(&dialler.ip());
        Some((copied, settled))
    }

    /// Credentials that the attacker knows: those of its own peers, and those that it has read.
    pub(super) fn credentials(
        &self,
        rng: &mut StdRng,
        is_wanted: impl Fn(&Credentials) -> bool,
    ) -> Option<Credentials> {
        let learnt = self.learnt();
        let mut known: Vec<_> = learnt
            .credentials
            .values()
            .filter(|known| is_wanted(known))
            .collect();
        // Sorted, since the map has no order, and a seed has to be reproducible.
        known.sort_by_key(|known| known.dialler);
        let index = rng.random_range(0..known.len().max(1));
        known.get(index).map(|known| (*known).clone())
    }

    /// The address of an honest dialler, and whether its handshake is complete.
    pub(super) fn dialler(&self, rng: &mut StdRng) -> Option<(SocketAddr, bool)> {
        let learnt = self.learnt();
        let index = rng.random_range(0..learnt.diallers.len().max(1));
        let dialler = *learnt.diallers.get(index)?;
        Some((dialler, learnt.settled.contains(&dialler.ip())))
    }

    /// A ClientHello, of the malicious peer.
    pub(super) fn hello(&self) -> Option<Vec<u8>> {
        self.learnt().hello.clone()
    }

    fn tap(self: &Arc<Self>, datagram: &mut TappedDatagram) -> Verdict {
        let mut learnt = self.learnt();
        let from = datagram.source.ip();
        let mut passes = true;
        if datagram.source == self.listening {
            learnt
                .ledger
                .sent(datagram.destination, datagram.contents.len());
            if victims::is_victim(datagram.destination) {
                self.react(&mut learnt, datagram);
            } else if datagram.destination.ip() == IpAddr::from(DEAF) {
                passes = !is_record(datagram);
            } else {
                self.observe(&mut learnt, datagram);
            }
        } else if from == IpAddr::from(MOLE) {
            self.on_mole(&mut learnt, datagram);
            if datagram.destination == self.listening {
                learnt.ledger.came(datagram.source, datagram.contents.len());
            }
        } else if from == IpAddr::from(TRAP) {
            self.observe(&mut learnt, datagram);
        } else if from == IpAddr::from(DEAF) {
            // It answers challenges, but has returned no nonce.
            passes = learnt.is_said(datagram);
            if passes {
                let bytes = datagram.contents.len();
                learnt.ledger.came(datagram.source, bytes);
            }
        } else {
            self.on_dialler(&mut learnt, datagram);
        }
        match passes {
            true => Verdict::Pass,
            false => Verdict::Drop,
        }
    }

    /// A victim answers.
    fn react(self: &Arc<Self>, learnt: &mut Learnt, datagram: &TappedDatagram) {
        let victim = datagram.destination;
        let reaction = victims::react(&self.plan, &mut learnt.rng, victim, datagram);
        if let Some((from, after, answer)) = reaction {
            if after.is_zero() {
                self.inject_with(learnt, from, self.listening, answer.into());
            } else {
                self.delay(learnt, after, [from, self.listening], answer);
            }
        }
        if self.plan.relays
            && let Some(mole) = learnt.mole
        {
            // Simulates a peer that acknowledges what it has not received.
            let contents = datagram.contents.clone().into();
            self.inject_with(learnt, self.listening, mole, contents);
        }
    }

    fn on_mole(&self, learnt: &mut Learnt, datagram: &mut TappedDatagram) {
        learnt.mole = Some(datagram.source);
        if datagram.contents.first() == Some(&22) {
            learnt
                .hello
                .get_or_insert_with(|| datagram.contents.clone());
        }
        if datagram.contents.starts_with(&STUN_SUCCESS) {
            learnt.ledger.answered.insert(datagram.source);
        }
        self.read_credentials(learnt, datagram);
        self.observe(learnt, datagram);
        if self.plan.resources
            && learnt.settled.contains(&IpAddr::from(MOLE))
            && learnt.rng.random_bool(0.3)
        {
            datagram.source = victims::any(&self.plan, &mut learnt.rng);
        }
    }

    fn on_dialler(&self, learnt: &mut Learnt, datagram: &TappedDatagram) {
        let trap = SocketAddr::from((TRAP, 4001));
        if datagram.destination == self.listening {
            learnt.ledger.came(datagram.source, datagram.contents.len());
            if datagram.contents.starts_with(&STUN_SUCCESS) {
                learnt.ledger.answered.insert(datagram.source);
            }
        } else if datagram.destination != trap {
            let to = datagram.destination;
            let broken = format!("the dialler at {} sent to {to}", datagram.source);
            learnt.ledger.breaks(broken);
        }
        if !learnt.diallers.contains(&datagram.source) {
            learnt.diallers.push(datagram.source);
        }
        if self.plan.observes || datagram.destination == trap {
            self.read_credentials(learnt, datagram);
        }
        self.observe(learnt, datagram);
    }

    fn read_credentials(&self, learnt: &mut Learnt, datagram: &TappedDatagram) {
        if datagram.contents.starts_with(&STUN_REQUEST)
            && let Ok(message) = StunMessage::parse(&datagram.contents)
            && let Some((server_ufrag, client_ufrag)) = message.split_username()
        {
            let credentials = Credentials {
                dialler: datagram.source,
                listener: datagram.destination,
                server_ufrag: server_ufrag.to_owned(),
                client_ufrag: client_ufrag.to_owned(),
            };
            learnt.credentials.insert(datagram.source, credentials);
        }
    }

    fn observe(&self, learnt: &mut Learnt, datagram: &TappedDatagram) {
        let own = [IpAddr::from(MOLE), IpAddr::from(TRAP)];
        let ends = [datagram.source.ip(), datagram.destination.ip()];
        if !self.plan.observes && !ends.iter().any(|end| own.contains(end)) {
            return;
        }
        if learnt.seen.len() == MAX_SEEN {
            // Some of the old ones stay, for late replays.
            let index = learnt.rng.random_range(0..MAX_SEEN);
            learnt.seen.remove(index);
        }
        learnt.seen.push_back(Copied {
            source: datagram.source,
            destination: datagram.destination,
            contents: datagram.contents.clone(),
        });
    }
}
