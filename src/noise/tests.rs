use proptest::prelude::*;
use snow::Error;
use snow::params::CipherChoice;
use snow::params::DHChoice;
use snow::params::HashChoice;
use snow::resolvers::CryptoResolver;
use snow::resolvers::DefaultResolver;
use snow::types::Cipher;
use snow::types::Dh;
use snow::types::Hash;
use snow::types::Random;

use super::*;

const CLIENT_FP: Fingerprint = Fingerprint::from_bytes([0xc1; 32]);
const SERVER_FP: Fingerprint = Fingerprint::from_bytes([0x5e; 32]);

fn alice() -> Identity {
    Identity::from_ed25519_seed([1; 32])
}

fn bob() -> Identity {
    Identity::from_ed25519_seed([2; 32])
}

fn server() -> Handshake {
    Handshake::server(&alice(), &CLIENT_FP, &SERVER_FP).unwrap()
}

fn client() -> Handshake {
    Handshake::client(&bob(), &CLIENT_FP, &SERVER_FP).unwrap()
}

/// A bare Noise state without libp2p rules, to write invalid messages.
fn bare(initiator: bool, resolver: impl CryptoResolver + Send + 'static) -> HandshakeState {
    let prologue = prologue(&CLIENT_FP, &SERVER_FP);
    let builder = snow::Builder::with_resolver(PATTERN.parse().unwrap(), Box::new(resolver));
    let builder = builder.local_private_key(&[3; 32]).unwrap();
    let builder = builder.prologue(&prologue).unwrap();
    if initiator {
        builder.build_initiator().unwrap()
    } else {
        builder.build_responder().unwrap()
    }
}

fn static_public(private: &[u8]) -> Vec<u8> {
    let mut dh = DefaultResolver.resolve_dh(&DHChoice::Curve25519).unwrap();
    dh.set(private);
    dh.pubkey().to_vec()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn written(noise: &mut HandshakeState, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 8000];
    let len = noise.write_message(payload, &mut message).unwrap();
    framed(&message[..len])
}

fn read(noise: &mut HandshakeState, bytes: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; bytes.len()];
    let len = noise.read_message(&bytes[2..], &mut payload).unwrap();
    payload.truncate(len);
    payload
}

/// The result of a server for a client that sends this payload.
fn server_meets(payload: &[u8]) -> NoiseError {
    let mut server = server();
    let mut noise = bare(false, Resolver);
    read(&mut noise, &server.poll_send().unwrap());
    let error = server.receive(&written(&mut noise, payload)).unwrap_err();
    assert!(server.poll_send().is_none());
    assert!(server.finished().is_none());
    error
}

/// The result of a client for a server that sends this payload.
fn client_meets(payload: &[u8]) -> NoiseError {
    let mut client = client();
    let mut noise = bare(true, Resolver);
    client.receive(&written(&mut noise, b"")).unwrap();
    read(&mut noise, &client.poll_send().unwrap());
    let error = client.receive(&written(&mut noise, payload)).unwrap_err();
    assert!(client.finished().is_none());
    error
}

fn payload_of(identity: &Identity, static_key: &[u8]) -> NoiseHandshakePayload {
    NoiseHandshakePayload {
        identity_key: Some(identity.public_key().to_protobuf().into()),
        identity_sig: Some(identity.sign(&signed(static_key)).into()),
        extensions: None,
    }
}

fn run(server: &mut Handshake, client: &mut Handshake, cut: usize) -> Result<(), NoiseError> {
    for _ in 0..2 {
        for (from, to) in [(0, 1), (1, 0)] {
            let sides = [&mut *server, &mut *client];
            let Some(bytes) = sides[from].poll_send() else {
                continue;
            };
            for part in bytes.chunks(cut) {
                sides[to].receive(part)?;
            }
        }
    }
    Ok(())
}

#[test]
fn prologue_of_the_specification() {
    let hex = |text: &str| {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect::<Vec<_>>()
    };
    let fingerprint = |text| Fingerprint::from_bytes(hex(text).try_into().unwrap());
    let client = fingerprint("3e79af40d6059617a0d83b83a52ce73b0c1f37a72c6043ad2969e2351bdca870");
    let server = fingerprint("30fc9f469c207419dfdd0aab5f27a86c973c94e40548db9375cca2e915973b99");
    assert_eq!(
        prologue(&client, &server),
        hex(
            "6c69627032702d7765627274632d6e6f6973653a12203e79af40d6059617a0d83b83a52ce73b0c1f37a72c\
             6043ad2969e2351bdca870122030fc9f469c207419dfdd0aab5f27a86c973c94e40548db9375cca2e91597\
             3b99"
        )
    );
}

#[test]
fn the_server_speaks_first_and_the_client_last_learns() {
    let (mut server, mut client) = (server(), client());
    assert!(client.poll_send().is_none());

    let first = server.poll_send().unwrap();
    assert_eq!(first.len(), 2 + 32);
    assert_eq!(first[..2], [0, 32]);
    assert!(server.poll_send().is_none());
    client.receive(&first).unwrap();
    assert!(client.finished().is_none());

    let second = client.poll_send().unwrap();
    assert_eq!(
        second.len() - 2,
        usize::from(second[0]) * 256 + usize::from(second[1])
    );
    server.receive(&second).unwrap();
    // The client is authenticated, but the server's identity has yet to be sent.
    assert!(server.finished().is_none());

    let third = server.poll_send().unwrap();
    assert_eq!(server.finished().unwrap().peer_id, bob().peer_id());
    client.receive(&third).unwrap();
    assert!(client.poll_send().is_none());
    assert_eq!(client.finished().unwrap().peer_id, alice().peer_id());
    assert_eq!(client.finished().unwrap().public_key, alice().public_key());
}

#[test]
fn bytes_may_be_cut_anywhere() {
    for cut in [1, 2, 3, 33, 34, 35, 100] {
        let (mut server, mut client) = (server(), client());
        run(&mut server, &mut client, cut).unwrap();
        assert_eq!(server.finished().unwrap().peer_id, bob().peer_id());
        assert_eq!(client.finished().unwrap().peer_id, alice().peer_id());
    }
}

#[test]
fn every_kind_of_identity_is_accepted() {
    for keypair in [
        libp2p_identity::Keypair::generate_secp256k1(),
        libp2p_identity::Keypair::generate_ecdsa(),
    ] {
        let other = Identity::from_protobuf(&keypair.to_protobuf_encoding().unwrap()).unwrap();
        let mut server = Handshake::server(&other, &CLIENT_FP, &SERVER_FP).unwrap();
        let mut client = Handshake::client(&other, &CLIENT_FP, &SERVER_FP).unwrap();
        run(&mut server, &mut client, 1000).unwrap();
        assert_eq!(client.finished().unwrap().peer_id, other.peer_id());
        assert_eq!(server.finished().unwrap().peer_id, other.peer_id());
    }
}

#[test]
fn unknown_extensions_are_ignored() {
    let mut server = server();
    let mut noise = bare(false, Resolver);
    read(&mut noise, &server.poll_send().unwrap());
    let mut payload = payload_of(&bob(), &static_public(&[3; 32]));
    payload.extensions = Some(proto::NoiseExtensions {
        webtransport_certhashes: vec![vec![1; 34].into()],
        stream_muxers: vec!["/yamux/1.0.0".into()],
        protocol_labels: Some(true),
    });
    let mut payload = payload.encode_to_vec();
    // Field 99, a varint.
    payload.extend([0x98, 0x06, 0x01]);
    server.receive(&written(&mut noise, &payload)).unwrap();
    assert!(server.poll_send().is_some());
    assert_eq!(server.finished().unwrap().peer_id, bob().peer_id());
}

#[test]
fn other_certificates_do_not_agree() {
    let stranger = Fingerprint::from_bytes([0xee; 32]);
    for (client_fp, server_fp) in [
        (CLIENT_FP, stranger),
        (stranger, SERVER_FP),
        (SERVER_FP, CLIENT_FP),
    ] {
        let mut server = server();
        let mut client = Handshake::client(&bob(), &client_fp, &server_fp).unwrap();
        assert_eq!(
            run(&mut server, &mut client, 1000),
            Err(NoiseError::Decrypt)
        );
        assert!(server.finished().is_none() && client.finished().is_none());
    }
}

#[test]
fn only_the_expected_peer_is_accepted() {
    let (alice_id, bob_id) = (alice().peer_id(), bob().peer_id());
    let mut good = (
        server().expecting(Some(bob_id)),
        client().expecting(Some(alice_id)),
    );
    run(&mut good.0, &mut good.1, 1000).unwrap();
    assert!(good.0.finished().is_some() && good.1.finished().is_some());

    let mut dialler = client().expecting(Some(bob_id));
    assert_eq!(
        run(&mut server(), &mut dialler, 1000),
        Err(NoiseError::UnexpectedPeer {
            expected: bob_id,
            got: alice_id
        })
    );
    assert!(dialler.finished().is_none());

    // The wrong client does not get the identity of the server.
    let mut listener = server().expecting(Some(alice_id));
    assert!(matches!(
        run(&mut listener, &mut client(), 1000),
        Err(NoiseError::UnexpectedPeer { .. })
    ));
    assert!(listener.poll_send().is_none());
    assert!(listener.finished().is_none());
}

#[test]
fn identity_must_be_proven() {
    let key = static_public(&[3; 32]);
    let good = payload_of(&bob(), &key);
    let with = |change: &dyn Fn(&mut NoiseHandshakePayload)| {
        let mut payload = good.clone();
        change(&mut payload);
        payload.encode_to_vec()
    };
    let garbage_key = |payload: &mut NoiseHandshakePayload| {
        payload.identity_key = Some(vec![1, 2, 3].into());
    };
    for meets in [server_meets, client_meets] {
        // Signed by another.
        let payload = with(&|p| p.identity_sig = Some(alice().sign(&signed(&key)).into()));
        assert_eq!(meets(&payload), NoiseError::InvalidSignature);
        // Replayed from a connection with another static key.
        let payload = payload_of(&bob(), &[9; 32]).encode_to_vec();
        assert_eq!(meets(&payload), NoiseError::InvalidSignature);
        // Signed without the prefix.
        let payload = with(&|p| p.identity_sig = Some(bob().sign(&key).into()));
        assert_eq!(meets(&payload), NoiseError::InvalidSignature);
        let payload = with(&|p| p.identity_sig = Some(Vec::new().into()));
        assert_eq!(meets(&payload), NoiseError::InvalidSignature);

        let payload = with(&|p| p.identity_sig = None);
        assert_eq!(meets(&payload), NoiseError::MissingIdentity);
        let payload = with(&|p| p.identity_key = None);
        assert_eq!(meets(&payload), NoiseError::MissingIdentity);
        assert_eq!(meets(b""), NoiseError::MissingIdentity);
        assert!(matches!(
            meets(&with(&garbage_key)),
            NoiseError::InvalidIdentityKey(_)
        ));
        assert_eq!(meets(&[0xff; 9]), NoiseError::InvalidPayload);
    }
}

#[test]
fn oversize_is_refused_before_it_is_kept() {
    for len in [4097, u16::MAX] {
        let mut client = client();
        assert_eq!(
            client.receive(&len.to_be_bytes()),
            Err(NoiseError::MessageTooLong(len.into()))
        );
        assert_eq!(client.incoming.capacity(), 0);
    }
    // A message of the maximum length is buffered, and nothing beyond it.
    let mut client = client();
    client.receive(&4096_u16.to_be_bytes()).unwrap();
    client.receive(&[7; 4095]).unwrap();
    assert_eq!(client.incoming.len(), 4097);
}

#[test]
fn messages_too_short_are_refused() {
    for len in 0..32 {
        let mut client = client();
        let error = client.receive(&framed(&vec![7; len])).unwrap_err();
        assert_eq!(error, NoiseError::MessageTooShort, "{len}");
    }
    let (mut server, mut client) = (server(), client());
    client.receive(&server.poll_send().unwrap()).unwrap();
    let second = client.poll_send().unwrap();
    for len in [0, 31, 32, 79, 80, 95, 96, second.len() - 3] {
        let mut server = self::server();
        let error = server.receive(&framed(&second[2..2 + len])).unwrap_err();
        assert!(
            matches!(error, NoiseError::MessageTooShort | NoiseError::Decrypt),
            "{len}: {error}"
        );
    }
}

#[test]
fn every_changed_message_is_noticed() {
    for (message, len) in [32, 200, 168].into_iter().enumerate() {
        for position in 2..2 + len {
            let (mut server, mut client) = (server(), client());
            let mut result = Ok(());
            for turn in 0..3 {
                let (from, to) = match turn {
                    1 => (&mut client, &mut server),
                    _ => (&mut server, &mut client),
                };
                let Some(mut bytes) = from.poll_send() else {
                    break;
                };
                if turn == message {
                    assert!(bytes.len() >= 2 + len);
                    bytes[position] ^= 0x80;
                }
                result = result.and_then(|()| to.receive(&bytes));
            }
            assert!(result.is_err(), "message {message}, byte {position}");
            assert!(client.finished().is_none());
        }
    }
}

#[test]
fn nothing_may_follow_the_handshake() {
    let (mut server, mut client) = (server(), client());
    run(&mut server, &mut client, 1000).unwrap();
    for side in [&mut server, &mut client] {
        side.receive(b"").unwrap();
        assert!(side.finished().is_some());
        assert_eq!(side.receive(&[0]), Err(NoiseError::TrailingBytes));
        assert!(side.finished().is_none());
        assert_eq!(side.receive(&[0]), Err(NoiseError::AlreadyFailed));
    }

    let (mut server, mut client) = (self::server(), self::client());
    client.receive(&server.poll_send().unwrap()).unwrap();
    server.receive(&client.poll_send().unwrap()).unwrap();
    let mut third = server.poll_send().unwrap();
    third.push(0);
    assert_eq!(client.receive(&third), Err(NoiseError::TrailingBytes));
}

#[test]
fn a_failed_handshake_stays_failed() {
    let mut server = server();
    let first = server.poll_send().unwrap();
    assert!(server.receive(&framed(&[0; 200])).is_err());
    let mut client = client();
    client.receive(&first).unwrap();
    assert_eq!(
        server.receive(&client.poll_send().unwrap()),
        Err(NoiseError::AlreadyFailed)
    );
    assert!(server.poll_send().is_none());
}

#[test]
fn two_of_a_kind_do_not_connect() {
    let (mut one, mut two) = (server(), server());
    let first = one.poll_send().unwrap();
    assert!(two.receive(&first).is_err());
}

/// The points of small order of X25519, and their non-canonical encodings. From the list of
/// libsodium (`has_small_order`).
fn low_order_points() -> Vec<[u8; 32]> {
    let mut one = [0; 32];
    one[0] = 1;
    // p = 2^255 - 19, p - 1 and p + 1.
    let near_p = [0xec_u8, 0xed, 0xee].map(|low| {
        let mut point = [0xff; 32];
        point[0] = low;
        point[31] = 0x7f;
        point
    });
    let order_8 = [
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f,
            0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16,
            0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83,
            0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd,
            0xd0, 0x9f, 0x11, 0x57,
        ],
    ];
    let mut points = vec![[0; 32], one];
    points.extend(near_p);
    points.extend(order_8);
    // RFC 7748, section 5: the highest bit is ignored.
    for mut point in points.clone() {
        point[31] |= 0x80;
        points.push(point);
    }
    points
}

#[test]
fn ephemeral_keys_of_small_order_are_refused() {
    for point in low_order_points() {
        let error = client().receive(&framed(&point)).unwrap_err();
        assert_eq!(error, NoiseError::LowOrderKey, "{point:02x?}");
        let second = [&point[..], &[0; 200]].concat();
        let error = server().receive(&framed(&second)).unwrap_err();
        assert_eq!(error, NoiseError::LowOrderKey, "{point:02x?}");
    }
}

/// A peer whose static key is zero, which yields a known secret.
struct ZeroStatic {
    inner: Box<dyn Dh>,
    is_static: bool,
}

struct ZeroStaticResolver;

impl CryptoResolver for ZeroStaticResolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Resolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(ZeroStatic {
            inner: DefaultResolver.resolve_dh(choice)?,
            is_static: false,
        }))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

impl Dh for ZeroStatic {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn pub_len(&self) -> usize {
        self.inner.pub_len()
    }

    fn priv_len(&self) -> usize {
        self.inner.priv_len()
    }

    fn set(&mut self, privkey: &[u8]) {
        self.is_static = true;
        self.inner.set(privkey);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        self.inner.generate(rng)
    }

    fn pubkey(&self) -> &[u8] {
        if self.is_static {
            &[0; 32]
        } else {
            self.inner.pubkey()
        }
    }

    fn privkey(&self) -> &[u8] {
        self.inner.privkey()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        self.inner.dh(pubkey, out)?;
        if self.is_static {
            out[..32].fill(0);
        }
        Ok(())
    }
}

#[test]
fn static_keys_of_small_order_are_refused() {
    let payload = payload_of(&bob(), &[0; 32]).encode_to_vec();

    let mut server = server();
    let mut noise = bare(false, ZeroStaticResolver);
    read(&mut noise, &server.poll_send().unwrap());
    let second = written(&mut noise, &payload);
    assert_eq!(server.receive(&second), Err(NoiseError::LowOrderKey));

    let mut client = client();
    let mut noise = bare(true, ZeroStaticResolver);
    client.receive(&written(&mut noise, b"")).unwrap();
    read(&mut noise, &client.poll_send().unwrap());
    let third = written(&mut noise, &payload);
    assert_eq!(client.receive(&third), Err(NoiseError::LowOrderKey));
}

#[test]
fn debug_shows_no_key() {
    let shown = format!("{:?}", server());
    assert_eq!(
        shown,
        "Handshake { state: \"AwaitSecond\", incoming: 0, .. }"
    );
}

proptest! {
    #![proptest_config(crate::random::cases(256))]

    #[test]
    fn garbage_never_finishes_and_never_panics(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
    ) {
        for mut side in [server(), client()] {
            for part in &parts {
                let _ = side.receive(part);
                let _ = side.poll_send();
                prop_assert!(side.incoming.len() <= PREFIX_LEN + MAX_MESSAGE);
            }
            prop_assert!(side.finished().is_none());
        }
    }

    #[test]
    fn framed_garbage_never_finishes_and_never_panics(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4),
    ) {
        for mut side in [server(), client()] {
            for message in &messages {
                let _ = side.receive(&framed(message));
                let _ = side.poll_send();
            }
            prop_assert!(side.finished().is_none());
        }
    }

    #[test]
    fn garbage_payload_is_refused(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        server_meets(&payload);
        client_meets(&payload);
    }
}
