"""Noise XX on channel 0. The server begins, so the dialler is the responder."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption
from cryptography.hazmat.primitives.serialization import PrivateFormat, PublicFormat
from noise.connection import Keypair, NoiseConnection

from interop.substream import Reader, Substream

from . import identity, varint

PATTERN = b"Noise_XX_25519_ChaChaPoly_SHA256"
PROLOGUE = b"libp2p-webrtc-noise:"
SIGNED = b"noise-libp2p-static-key:"
SHA2_256 = bytes([0x12, 32])

IDENTITY_KEY, IDENTITY_SIG = 1, 2


async def respond(
    substream: Substream, key: Ed25519PrivateKey, client_hash: bytes, server_hash: bytes
) -> str:
    """Returns the peer id that the server has proven."""
    static = X25519PrivateKey.generate()
    private = static.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = static.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    noise = NoiseConnection.from_name(PATTERN)
    noise.set_as_responder()
    noise.set_prologue(PROLOGUE + SHA2_256 + client_hash + SHA2_256 + server_hash)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, private)
    noise.start_handshake()

    reader = Reader(substream)
    noise.read_message(await _read(reader))
    proof = varint.field(IDENTITY_KEY, identity.encode_key(key))
    proof += varint.field(IDENTITY_SIG, key.sign(SIGNED + public))
    await _write(substream, noise.write_message(proof))
    # Reading the third message discards the keys of the handshake.
    handshake = noise.noise_protocol.handshake_state
    theirs = varint.fields(bytes(noise.read_message(await _read(reader))))
    server_key = theirs[IDENTITY_KEY]
    signed = SIGNED + handshake.rs.public_bytes
    identity.decode_key(server_key).verify(theirs[IDENTITY_SIG], signed)
    return identity.peer_id(server_key)


async def _read(reader: Reader) -> bytes:
    return await reader.exactly(int.from_bytes(await reader.exactly(2), "big"))


async def _write(substream: Substream, message: bytes | bytearray) -> None:
    await substream.write(len(message).to_bytes(2, "big") + bytes(message))
