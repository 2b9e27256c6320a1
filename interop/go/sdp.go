package main

import (
	"fmt"
	"net"
	"strings"
)

// Names of the libp2p webrtc-direct specification.
const maxMessageSize = 16384

// anyFingerprint is in the offer that a listener infers: the dialler's certificate is unknown
// before DTLS, and Noise authenticates it.
var anyFingerprint = make([]byte, 32)

// serverAnswer is the answer that a dialler derives from a listener's address.
func serverAnswer(a address, c credentials) string {
	return sessionDescription(a.socket, "passive", c.serverUfrag, c.serverUfrag, a.certificateHash,
		"a=ice-lite",
		fmt.Sprintf("a=candidate:1 1 UDP 2130706431 %s %d typ host", a.socket.IP, a.socket.Port),
		"a=end-of-candidates")
}

// clientOffer is the offer that a listener derives from a dialler's first check.
func clientOffer(from *net.UDPAddr, c credentials) string {
	return sessionDescription(from, "actpass", c.clientUfrag, c.clientPassword, anyFingerprint)
}

func sessionDescription(
	socket *net.UDPAddr, setup, ufrag, password string, fingerprint []byte, more ...string,
) string {
	family := "IP6"
	if socket.IP.To4() != nil {
		family = "IP4"
	}
	lines := []string{
		"v=0",
		fmt.Sprintf("o=- 0 0 IN %s %s", family, socket.IP),
		"s=-",
		"t=0 0",
	}
	// A lite agent declares that for the whole session.
	if len(more) > 0 {
		lines, more = append(lines, more[0]), more[1:]
	}
	lines = append(lines,
		fmt.Sprintf("m=application %d UDP/DTLS/SCTP webrtc-datachannel", socket.Port),
		fmt.Sprintf("c=IN %s %s", family, socket.IP),
		"a=mid:0",
		"a=ice-options:ice2",
		"a=ice-ufrag:"+ufrag,
		"a=ice-pwd:"+password,
		"a=fingerprint:sha-256 "+colonHex(fingerprint),
		"a=setup:"+setup,
		"a=sctp-port:5000",
		fmt.Sprintf("a=max-message-size:%d", maxMessageSize),
	)
	return strings.Join(append(lines, more...), "\r\n") + "\r\n"
}

func colonHex(bytes []byte) string {
	digits := make([]string, len(bytes))
	for i, b := range bytes {
		digits[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(digits, ":")
}
