//! Impostors: a certificate other than that of the address, another identity, and a man in the
//! middle, in both roles.

use std::time::Duration;

use tokio::time::sleep;

use super::peer::{Peer, address};
use super::{CREDENTIALS, ENGINES, World};
use anabranch::endpoint::ConnectError;
use anabranch::noise::NoiseError;

#[tokio::test(start_paused = true)]
async fn a_listener_whose_certificate_is_not_that_of_the_address_is_not_talked_to() {
    let (identity, _) = &CREDENTIALS[2];
    let (_, other) = &CREDENTIALS[1];
    for engine in ENGINES {
        let world = World::new(engine).await;
        let host = world.attacker.clone();
        let peer_task = tokio::spawn(async move {
            let mut peer = Peer::listener(&host, &CREDENTIALS[2].1).await;
            peer.run(Duration::from_secs(30)).await;
            peer.received.len()
        });
        sleep(Duration::from_millis(1)).await;
        let error = world.victim.connect(&address(other, identity)).await;
        let error = error.expect_err("another certificate");
        let got = CREDENTIALS[2].1.fingerprint();
        assert!(
            matches!(error, ConnectError::CertificateMismatch { got: it } if it == got),
            "{error}"
        );
        world.assert_only_the_neighbour_is_left().await;
        let received = peer_task.await.expect("no panic");
        assert_eq!(received, 0, "data was sent to the impostor");
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_proves_another_identity_than_that_of_the_address_is_refused() {
    let (expected, _) = &CREDENTIALS[1];
    let (identity, certificate) = &CREDENTIALS[2];
    for engine in ENGINES {
        let world = World::new(engine).await;
        let host = world.attacker.clone();
        let peer_task = tokio::spawn(async move {
            let mut peer = Peer::listener(&host, &CREDENTIALS[2].1).await;
            let victim = peer.connect().await;
            let noise = peer.noise(&CREDENTIALS[2].0, &peer.own_fingerprint(), &victim);
            peer.authenticate(noise).await;
            peer.run(Duration::from_secs(30)).await;
        });
        sleep(Duration::from_millis(1)).await;
        let error = world.victim.connect(&address(certificate, expected)).await;
        let error = error.expect_err("another identity");
        let message = error.to_string();
        assert!(
            matches!(error, ConnectError::UnexpectedPeer { expected: wanted, got }
                if wanted == expected.peer_id() && got == identity.peer_id()),
            "{message}"
        );
        world.assert_only_the_neighbour_is_left().await;
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}

/// No address contains a dialler's certificate: the listener detects a man in the middle by the
/// prologue, which contains the fingerprint of the honest dialler's certificate.
#[tokio::test(start_paused = true)]
async fn a_dialler_whose_noise_is_of_another_certificate_is_refused() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        let peer_task = tokio::spawn(async move {
            let mut peer = peer;
            let victim = peer.connect().await;
            let other = CREDENTIALS[1].1.fingerprint();
            let mut noise = peer.noise(&CREDENTIALS[1].0, &other, &victim);
            let mut decoder = anabranch::message::FrameDecoder::new();
            decoder.push(peer.message(anabranch_rtc::CHANNEL_ZERO).await);
            let message = decoder.next_message().expect("valid").expect("whole");
            noise.receive(&message.payload).expect("message 1");
            peer.send_noise(&noise.poll_send().expect("message 2"));
            peer.run(Duration::from_secs(30)).await;
        });
        let (result, _) = world.outcome().await;
        let error = result.expect_err("another prologue");
        assert!(
            matches!(
                error,
                ConnectError::Noise(NoiseError::Decrypt | NoiseError::InvalidSignature)
            ),
            "{error:?}"
        );
        world.assert_only_the_neighbour_is_left().await;
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}

/// A dialler is identified by Noise alone: it may use any certificate.
#[tokio::test(start_paused = true)]
async fn a_dialler_is_whom_its_noise_proves_and_nobody_else() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        // Dials with the certificate of another identity.
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[1].1);
        let victim = peer.connect().await;
        assert_eq!(victim, CREDENTIALS[0].1.fingerprint());
        let noise = peer.noise(&CREDENTIALS[2].0, &peer.own_fingerprint(), &victim);
        let authenticated = peer.authenticate(noise).await;
        assert_eq!(authenticated, CREDENTIALS[0].0.peer_id());
        let (connection, _) = world.outcome().await;
        let connection = connection.expect("a connection");
        assert_eq!(connection.peer_id(), Some(CREDENTIALS[2].0.peer_id()));
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(30)).await });
        connection.close().await;
        drop(connection);
        let ended = peer_task.await.expect("no panic");
        assert!(ended.is_some(), "the close reaches the peer");
        world.finish().await;
    }
}
