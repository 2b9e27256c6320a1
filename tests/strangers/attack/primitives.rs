//! The primitives of an attacker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use is::stun::{StunMessage, TransId};
use rand::RngExt;
use rand::rngs::StdRng;

use super::plan::Plan;
use super::victims::{self, change};
use super::world::{NEIGHBOUR, NEWCOMERS, World};
use crate::harness::{encode, first_contact, request, stun_server};

/// Contacts of one burst.
const BURST: usize = 10;

/// Longest datagram of junk.
const MAX_JUNK: usize = 1400;

/// Maximum delay of a replayed datagram.
const MAX_DELAY_MS: u64 = 5000;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Primitive {
    /// A first contact with the source of a victim, and its repetitions.
    Contact,
    /// The same with other ports of an honest neighbour.
    ContactOfNeighbour,
    /// Many at once, each from an address of its own.
    Burst,
    /// A first contact from a host that signs the answer to a challenge.
    SignedContact,
    /// A first contact with the source of a victim, followed by a ClientHello.
    Handshake,
    /// A dial that falls silent in its handshake, before it has proved its address.
    DeafDial,
    /// Bytes that look like STUN, DTLS or nothing, with any source.
    Junk,
    /// A check with the credentials of a connection and the source of a victim: a listener moves to
    /// the last address that its peer has nominated.
    Nominate,
    /// The same from a port of a host that signs answers: a single challenge is all that it gets
    /// for its bytes.
    NominateOnce,
    /// The same towards the dialler of a connection.
    NominateToDialler,
    /// Responses to checks that were not sent, or were sent to others.
    Answer,
    /// A replayed datagram with the same source and destination.
    Replay,
    /// A replayed datagram with another source, or back to its sender.
    Redirect,
    /// A modified datagram.
    Change,
    /// Parts of two datagrams combined.
    Mix,
}

impl Primitive {
    pub(super) const ALL: [Self; 15] = [
        Self::Contact,
        Self::ContactOfNeighbour,
        Self::Burst,
        Self::SignedContact,
        Self::Handshake,
        Self::DeafDial,
        Self::Junk,
        Self::Nominate,
        Self::NominateOnce,
        Self::NominateToDialler,
        Self::Answer,
        Self::Replay,
        Self::Redirect,
        Self::Change,
        Self::Mix,
    ];

    /// Executes the primitive, if its requirements are met.
    pub(super) fn perform(self, world: &Arc<World>, rng: &mut StdRng) {
        let done = match self {
            Self::Contact => contact(world, rng, |world, rng| victims::any(&world.plan, rng)),
            Self::ContactOfNeighbour => contact(world, rng, |world, rng| {
                // Of an existing peer, or of one that will dial later.
                let number = match rng.random_range(0..=world.plan.newcomers) {
                    0 => NEIGHBOUR,
                    n => NEWCOMERS + n - 1,
                };
                let port = rng.random_range(1024..40_000);
                SocketAddr::from(([10, 0, 0, number], port))
            }),
            Self::Burst => burst(world, rng),
            Self::SignedContact => contact(world, rng, |_, rng| victims::signer(rng)),
            Self::Handshake => handshake(world, rng),
            Self::DeafDial => deaf_dial(world),
            Self::Junk => junk(world, rng),
            Self::Nominate => nominate(world, rng, victims::any),
            Self::NominateOnce => nominate(world, rng, |_, rng| victims::signer(rng)),
            Self::NominateToDialler => nominate_to_dialler(world, rng),
            Self::Answer => answer(world, rng),
            Self::Replay => replay(world, rng),
            Self::Redirect => redirect(world, rng),
            Self::Change => changed(world, rng),
            Self::Mix => mix(world, rng),
        };
        // There may be nothing to copy yet.
        done.unwrap_or_default();
    }
}

fn contact(
    world: &Arc<World>,
    rng: &mut StdRng,
    from: impl Fn(&World, &mut StdRng) -> SocketAddr,
) -> Option<()> {
    let from = from(world, rng);
    let contact = some_contact(rng);
    world.inject(from, world.listening, contact.clone());
    for _ in 0..rng.random_range(0..4) {
        let after = Duration::from_millis(rng.random_range(20..400));
        world.inject_later(after, from, world.listening, contact.clone());
    }
    Some(())
}

/// A first contact of either version.
fn some_contact(rng: &mut StdRng) -> Vec<u8> {
    if rng.random_bool(0.5) {
        return first_contact(rng);
    }
    let mut random = |length: usize| -> String {
        (0..length)
            .map(|_| char::from(rng.random_range(b'a'..=b'z')))
            .collect()
    };
    let server = format!("libp2p+webrtc+v2/{}", random(32));
    let username = format!("{server}:{}", random(32));
    let priority = rng.random();
    request(&username, &server, priority, rng.random_bool(0.9))
}

fn burst(world: &World, rng: &mut StdRng) -> Option<()> {
    for _ in 0..BURST {
        let from = victims::stranger(rng);
        let contact = some_contact(rng);
        world.inject(from, world.listening, contact);
    }
    Some(())
}

fn handshake(world: &Arc<World>, rng: &mut StdRng) -> Option<()> {
    let hello = world.hello()?;
    let from = match rng.random_bool(0.5) {
        true => victims::any(&world.plan, rng),
        false => victims::stranger(rng),
    };
    world.inject(from, world.listening, some_contact(rng));
    for n in 1..rng.random_range(2..5) {
        let after = Duration::from_millis(n * 30);
        world.inject_later(after, from, world.listening, hello.clone());
    }
    Some(())
}

fn deaf_dial(world: &Arc<World>) -> Option<()> {
    let (endpoint, dials) = &world.deaf;
    let dial = Arc::clone(dials).try_acquire_owned().ok()?;
    let (endpoint, address) = (endpoint.clone(), world.address.clone());
    tokio::spawn(async move {
        let dialled = endpoint.connect(&address).await;
        assert!(dialled.is_err(), "a handshake that nobody has heard");
        drop(dial);
    });
    Some(())
}

fn junk(world: &World, rng: &mut StdRng) -> Option<()> {
    let dialler = world.dialler(rng);
    let (mut from, mut to) = (victims::any(&world.plan, rng), world.listening);
    let mut settled = true;
    if let Some((dialler, is_settled)) = dialler {
        settled = is_settled;
        match rng.random_range(0..4) {
            0 => from = dialler,
            1 => (from, to) = (world.listening, dialler),
            2 => to = dialler,
            _ => {}
        }
    }
    let length = match rng.random_range(0..4) {
        0 => rng.random_range(0..4),
        1 => rng.random_range(0..64),
        _ => rng.random_range(0..MAX_JUNK),
    };
    let mut junk = vec![0; length];
    rng.fill(&mut junk[..]);
    match rng.random_range(0..4) {
        0 => {
            let first = [0, 1, 3, 20, 21, 22, 23, 25, 44, 47, 63, 64, 128, 255];
            if let Some(byte) = junk.first_mut() {
                *byte = first[rng.random_range(0..first.len())];
            }
        }
        1 => {
            // A plaintext record of DTLS 1.2: an alert or a part of a handshake. An attacker who
            // knows both ports can disturb a handshake with these.
            let kind = [21, 22, 23][rng.random_range(0..3)];
            if settled {
                let alert = [kind, 254, 253, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 2, 0];
                junk = alert.to_vec();
            }
        }
        2 => {
            // A STUN header with the right length.
            junk.truncate(junk.len() & !3);
            let length = (junk.len() as u16).to_be_bytes();
            let kind = [[0, 1], [1, 1], [1, 17], [0, 17]][rng.random_range(0..4)];
            let header = [kind, length].concat();
            let header = [&header[..], &[0x21, 0x12, 0xa4, 0x42], &[rng.random(); 12]].concat();
            junk.splice(0..0, header);
        }
        _ => {}
    }
    world.inject(from, to, junk);
    Some(())
}

fn priority(rng: &mut StdRng) -> u32 {
    match rng.random_bool(0.5) {
        true => u32::MAX,
        false => rng.random(),
    }
}

fn nominate(
    world: &World,
    rng: &mut StdRng,
    from: fn(&Plan, &mut StdRng) -> SocketAddr,
) -> Option<()> {
    let listening = world.listening;
    let known = world.credentials(rng, |known| known.listener == listening)?;
    let username = format!("{}:{}", known.server_ufrag, known.client_ufrag);
    let check = request(&username, &known.server_ufrag, priority(rng), true);
    let from = from(&world.plan, rng);
    world.inject(from, world.listening, check);
    Some(())
}

fn nominate_to_dialler(world: &World, rng: &mut StdRng) -> Option<()> {
    let known = world.credentials(rng, |_| true)?;
    let username = format!("{}:{}", known.client_ufrag, known.server_ufrag);
    let is_controlling = rng.random_bool(0.3);
    let password = known.client_password();
    let check = request(&username, password, priority(rng), is_controlling);
    let from = victims::any(&world.plan, rng);
    world.inject(from, known.dialler, check);
    Some(())
}

fn answer(world: &World, rng: &mut StdRng) -> Option<()> {
    // The transaction ID of another check, or a random one.
    let mut asked = request("a:b", "c", 1, false);
    if let Some((copied, _)) = world.copied(rng)
        && copied.contents.starts_with(&[0, 1])
    {
        asked = copied.contents;
    }
    let transaction = StunMessage::parse(&asked)
        .ok()
        .map_or_else(TransId::new, |message| message.trans_id());
    let known = world.credentials(rng, |_| true);
    let password = known
        .as_ref()
        .map_or("none", |known| known.client_password());
    let from = victims::any(&world.plan, rng);
    let answer = match rng.random_range(0..3) {
        0 => stun_server(&asked)?,
        1 => {
            let response = StunMessage::binding_reply(transaction, from);
            encode(response, password)
        }
        _ => {
            // An error response of the right length, without a valid MESSAGE-INTEGRITY.
            let mut error = stun_server(&asked)?;
            error[1] = 0x11;
            error
        }
    };
    let to = match world.dialler(rng) {
        Some((dialler, _)) if rng.random_bool(0.3) => dialler,
        _ => world.listening,
    };
    world.inject(from, to, answer);
    Some(())
}

fn delay(rng: &mut StdRng) -> Duration {
    Duration::from_millis(match rng.random_range(0..3) {
        0 => 0,
        1 => rng.random_range(0..100),
        _ => rng.random_range(0..MAX_DELAY_MS),
    })
}

fn replay(world: &Arc<World>, rng: &mut StdRng) -> Option<()> {
    let (copied, _) = world.copied(rng)?;
    for _ in 0..rng.random_range(1..4) {
        let contents = copied.contents.clone();
        world.inject_later(delay(rng), copied.source, copied.destination, contents);
    }
    Some(())
}

fn redirect(world: &Arc<World>, rng: &mut StdRng) -> Option<()> {
    let (copied, _) = world.copied(rng)?;
    let (from, to) = match rng.random_range(0..3) {
        0 => (victims::any(&world.plan, rng), copied.destination),
        1 => (copied.destination, copied.source),
        _ => (victims::any(&world.plan, rng), copied.source),
    };
    world.inject_later(delay(rng), from, to, copied.contents);
    Some(())
}

fn changed(world: &Arc<World>, rng: &mut StdRng) -> Option<()> {
    let (mut copied, is_settled) = world.copied(rng)?;
    // Handshake messages are not authenticated before its end: an attacker who is faster than the
    // peer can disturb that handshake (RFC 9147 section 11), and only that.
    if !is_settled {
        return None;
    }
    change(rng, &mut copied.contents);
    world.inject_later(
        delay(rng),
        copied.source,
        copied.destination,
        copied.contents,
    );
    Some(())
}

fn mix(world: &Arc<World>, rng: &mut StdRng) -> Option<()> {
    let (mut first, is_settled) = world.copied(rng)?;
    let (second, _) = world.copied(rng)?;
    if !is_settled {
        return None;
    }
    let cut = rng.random_range(0..=first.contents.len());
    first.contents.truncate(cut);
    let from = match rng.random_bool(0.5) {
        true => 0,
        false => cut.min(second.contents.len()),
    };
    first.contents.extend_from_slice(&second.contents[from..]);
    world.inject_later(delay(rng), first.source, first.destination, first.contents);
    Some(())
}
