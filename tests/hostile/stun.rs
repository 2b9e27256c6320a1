//! Malformed STUN messages, and checks of peers that never connect.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use super::peer::Peer;
use super::sctp::connected;
use super::{CREDENTIALS, ENGINES, World};
use anabranch_rtc::Role;
use anabranch_testkit::fuzzing::ForgedStun;
use anabranch_testkit::simulator::Verdict;

const REQUEST: u16 = 0x0001;
const USERNAME: u16 = 0x0006;

const UFRAG: &str = "libp2p+webrtc+v1/0123456789abcdefghijklmnopqrstuv";

/// A check with this USERNAME that is valid otherwise.
fn check(username: Option<&[u8]>, password: &[u8]) -> Vec<u8> {
    check_with(username, password, |_| {})
}

fn check_with(
    username: Option<&[u8]>,
    password: &[u8],
    more: impl FnOnce(&mut ForgedStun),
) -> Vec<u8> {
    let mut message = ForgedStun::new(REQUEST, 7);
    if let Some(username) = username {
        message.add(USERNAME, username);
    }
    // PRIORITY and ICE-CONTROLLING.
    message.add(0x0024, &[0x6e, 0, 1, 0xff]);
    message.add(0x802a, &[0; 8]);
    more(&mut message);
    message.sign(password);
    message.0
}

/// Invalid first contacts, with what is wrong with each.
fn invalid_checks() -> Vec<(&'static str, Vec<u8>)> {
    let valid = [UFRAG, ":", UFRAG].concat();
    let password = UFRAG.as_bytes();
    let with = |username: &str| check(Some(username.as_bytes()), password);
    let half = UFRAG.trim_start_matches("libp2p+webrtc+v1/");
    let mut too_long = check(Some(valid.as_bytes()), password);
    too_long[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
    let mut truncated = check(Some(valid.as_bytes()), password);
    truncated.truncate(truncated.len() / 2);
    let mut long_username = check(Some(valid.as_bytes()), password);
    // The length of USERNAME, beyond the end.
    long_username[22..24].copy_from_slice(&2000_u16.to_be_bytes());
    let mut controlled = ForgedStun::new(REQUEST, 7);
    controlled.add(USERNAME, valid.as_bytes());
    controlled.add(0x0024, &[0x6e, 0, 1, 0xff]);
    // ICE-CONTROLLED.
    controlled.add(0x8029, &[0, 0, 0, 0, 0, 0, 0, 1]);
    controlled.sign(password);
    let controlled = controlled.0;
    let injected = format!("{UFRAG}\r\na=candidate:1 1 udp 1 192.0.2.9 9 typ host");
    vec![
        ("no USERNAME", check(None, password)),
        ("empty", with("")),
        ("no separator", with(UFRAG)),
        ("only a separator", with(":")),
        ("CR and LF at the end", with(&format!("{valid}\r\n"))),
        ("CR and LF within", with(&format!("{injected}:{injected}"))),
        ("LF", with(&format!("{UFRAG}\n:{UFRAG}\n"))),
        ("NUL", with(&format!("{UFRAG}\0:{UFRAG}\0"))),
        ("spaces", with(&format!("{UFRAG} :{UFRAG} "))),
        ("two separators", with(&format!("{valid}:{UFRAG}"))),
        ("unequal halves", with(&format!("{UFRAG}:{UFRAG}x"))),
        (
            "an unknown version",
            with(&format!("libp2p+webrtc+v9/{half}:{half}")),
        ),
        (
            "too long",
            with(&format!("{UFRAG}{0}:{UFRAG}{0}", "x".repeat(300))),
        ),
        ("too short", with("libp2p+webrtc+v1/:libp2p+webrtc+v1/")),
        ("no UTF-8", check(Some(&[0xff; 100]), password)),
        (
            "another password",
            check(Some(valid.as_bytes()), b"0123456789abcdefghijklmnop"),
        ),
        ("a length beyond the end", too_long),
        ("truncated", truncated),
        ("a USERNAME beyond the end", long_username),
        ("a header only", vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]),
        ("one byte", vec![0]),
        ("the challenge of another listener", controlled),
    ]
}

#[tokio::test(start_paused = true)]
async fn hostile_first_contacts_get_neither_state_nor_answer() {
    for engine in ENGINES {
        let world = World::new(engine).await;
        let victim = world.network.host(super::VICTIM);
        for (index, (why, datagram)) in invalid_checks().into_iter().enumerate() {
            let last = u8::try_from(index + 1).expect("few");
            let source = SocketAddr::from(([192, 0, 2, last], 9));
            for _ in 0..3 {
                let to = world.address.socket_addr();
                world.network.inject(source, to, datagram.clone());
            }
            sleep(Duration::from_millis(200)).await;
            let stranger = world.network.host(source.ip());
            let answered = world.network.link_counters(&victim, &stranger);
            assert_eq!(answered.sent, 0, "{why} on {engine:?}");
            assert_eq!(world.victim.connections(), 1, "{why}");
        }
        // No handshake waits to be accepted either.
        let mut world = world;
        assert!(world.accepted.try_recv().is_err());
        world.assert_unharmed().await;
        world.finish().await;
    }
}

/// Chromium adds its ClientHello to checks (attribute 0xc070), which then exceed a kilobyte.
#[tokio::test(start_paused = true)]
async fn a_check_of_1100_bytes_is_a_check_like_any_other() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let username = [UFRAG, ":", UFRAG].concat();
        let long = check_with(Some(username.as_bytes()), UFRAG.as_bytes(), |message| {
            // Less the attribute's header, and MESSAGE-INTEGRITY after it.
            let room = 1100 - message.0.len() - 4 - 24;
            message.add(0xc070, &vec![0x5a; room]);
        });
        assert_eq!(long.len(), 1100);
        let source = SocketAddr::from(([192, 0, 2, 1], 9));
        let to = world.address.socket_addr();
        world.network.inject(source, to, long.clone());
        let (result, _) = world.outcome().await;
        assert!(result.is_err(), "the handshake does not continue");
        let victim = world.network.host(super::VICTIM);
        let stranger = world.network.host(source.ip());
        let answered = world.network.link_counters(&victim, &stranger);
        assert!(answered.sent > 0, "on {engine:?}");
        assert!(answered.sent_bytes <= 3 * 1100, "on {engine:?}");
        world.finish().await;
    }
}

/// A connected peer that sends malformed checks with each of its own.
#[tokio::test(start_paused = true)]
async fn hostile_stun_within_a_connection_changes_nothing() {
    for engine in ENGINES {
        for role in [Role::Client, Role::Server] {
            let mut world = World::without_noise(engine).await;
            let network = world.network.clone();
            let attacker = SocketAddr::from((super::ATTACKER, 0)).ip();
            world.network.set_tap(move |datagram| {
                let is_stun = matches!(datagram.contents.first(), Some(0..=3));
                if is_stun && datagram.source.ip() == attacker {
                    for (_, hostile) in invalid_checks() {
                        network.inject(datagram.source, datagram.destination, hostile);
                    }
                    // The original with a wrong length, and truncated.
                    let mut wrong_length = datagram.contents.clone();
                    wrong_length[3] ^= 0x10;
                    network.inject(datagram.source, datagram.destination, wrong_length);
                    let half = datagram.contents[..datagram.contents.len() / 2].to_vec();
                    network.inject(datagram.source, datagram.destination, half);
                }
                Verdict::Pass
            });
            let (mut peer, connection) = connected(&mut world, role).await;
            peer.run(Duration::from_secs(60)).await;
            assert_eq!(connection.close_reason(), None, "{role:?} on {engine:?}");
            world.network.clear_tap();
            let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
            connection.close().await;
            drop(connection);
            let ended = peer_task.await.expect("no panic");
            assert!(ended.is_some(), "the close reaches the peer");
            world.finish().await;
        }
    }
}

/// Checks of a dialler that never continues: those of one address share one handshake at a time,
/// and cause nothing but that.
#[tokio::test(start_paused = true)]
async fn a_check_that_is_repeated_for_ever_is_one_handshake_at_a_time() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        peer.send_filter = Box::new(|datagram| matches!(datagram.first(), Some(0)));
        let begin = tokio::time::Instant::now();
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(35)).await });
        let mut ended = 0;
        while begin.elapsed() < Duration::from_secs(60) {
            let outcome = tokio::time::timeout(Duration::from_secs(15), world.accepted.recv());
            let Ok(Some((result, _))) = outcome.await else {
                break;
            };
            assert!(result.is_err());
            assert!(world.victim.connections() <= 1);
            ended += 1;
        }
        assert!((1..=5).contains(&ended), "{ended} on {engine:?}");
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}
