"""webrtc-direct addresses, and the answer that a dialler writes for its server."""

import base64
from dataclasses import dataclass

from .noise import SHA2_256

# Session and media description of an ICE-lite server that is passive in DTLS.
ANSWER = """v=0
o=- 0 0 IN {family} {host}
s=-
t=0 0
a=ice-lite
m=application {port} UDP/DTLS/SCTP webrtc-datachannel
c=IN {family} {host}
a=mid:0
a=ice-ufrag:{ufrag}
a=ice-pwd:{ufrag}
a=fingerprint:sha-256 {fingerprint}
a=setup:passive
a=sctp-port:5000
a=max-message-size:16384
a=candidate:1 1 UDP 1 {host} {port} typ host
a=end-of-candidates
"""


@dataclass
class Address:
    host: str
    port: int
    certificate_hash: bytes
    peer_id: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        match text.split("/"):
            case ["", ip, host, "udp", port, "webrtc-direct", "certhash", hash, "p2p", peer]:
                if ip not in ("ip4", "ip6") or hash[:1] != "u":
                    raise ValueError(f"not an address of this kind: {text}")
                multihash = base64.urlsafe_b64decode(hash[1:] + "=" * (-len(hash[1:]) % 4))
                if multihash[:2] != SHA2_256:
                    raise ValueError("no SHA-256 of a certificate")
                return cls(host, int(port), multihash[2:], peer)
        raise ValueError(f"not an address of this kind: {text}")

    def answer(self, ufrag: str) -> str:
        return ANSWER.format(
            family="IP6" if ":" in self.host else "IP4",
            host=self.host,
            port=self.port,
            ufrag=ufrag,
            fingerprint=self.certificate_hash.hex(":").upper(),
        ).replace("\n", "\r\n")
