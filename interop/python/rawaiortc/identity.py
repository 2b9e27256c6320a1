"""Ed25519 identities and their peer ids."""

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from . import varint

ED25519 = 1
IDENTITY_MULTIHASH = 0


def encode_key(key: Ed25519PrivateKey) -> bytes:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return varint.field(1, ED25519) + varint.field(2, raw)


def decode_key(message: bytes) -> Ed25519PublicKey:
    fields = varint.fields(message)
    if fields.get(1) != ED25519:
        raise ValueError(f"a key of type {fields.get(1)}")
    return Ed25519PublicKey.from_public_bytes(fields[2])


def peer_id(key: bytes) -> str:
    """The peer id of an encoded key, which is short enough for the identity hash."""
    return base58.b58encode(bytes([IDENTITY_MULTIHASH, len(key)]) + key).decode()
