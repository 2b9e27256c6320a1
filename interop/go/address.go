package main

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Codes of multihash and multibase: SHA-256, and base64url without padding.
const (
	multihashSHA256    = 0x12
	multibaseBase64URL = "u"
)

// address is a webrtc-direct multiaddr: a socket address and, for a running listener, the SHA-256
// of its certificate and its peer id.
type address struct {
	socket          *net.UDPAddr
	certificateHash []byte
	peerID          string
}

func parseAddress(text string) (address, error) {
	wrong := func(what string) (address, error) {
		return address{}, fmt.Errorf("address %q: %s", text, what)
	}
	parts := strings.Split(text, "/")
	if len(parts) < 6 || parts[0] != "" || parts[3] != "udp" || parts[5] != "webrtc-direct" {
		return wrong("expected /ip4|ip6/IP/udp/PORT/webrtc-direct")
	}
	ip := net.ParseIP(parts[2])
	isIP4 := ip.To4() != nil
	if ip == nil || (parts[1] == "ip4") != isIP4 || (parts[1] == "ip6") == isIP4 {
		return wrong("no such IP address")
	}
	port, err := strconv.ParseUint(parts[4], 10, 16)
	if err != nil {
		return wrong("no such port")
	}
	a := address{socket: &net.UDPAddr{IP: ip, Port: int(port)}}
	for rest := parts[6:]; len(rest) > 0; rest = rest[2:] {
		if len(rest) == 1 {
			return wrong("a part without a value")
		}
		var err error
		switch rest[0] {
		case "certhash":
			a.certificateHash, err = parseCertificateHash(rest[1])
		case "p2p":
			a.peerID, err = rest[1], validatePeerID(rest[1])
		default:
			err = fmt.Errorf("unknown part %q", rest[0])
		}
		if err != nil {
			return wrong(err.Error())
		}
	}
	return a, nil
}

func parseCertificateHash(text string) ([]byte, error) {
	if !strings.HasPrefix(text, multibaseBase64URL) {
		return nil, errors.New("a certhash that is not base64url")
	}
	multihash, err := base64.RawURLEncoding.DecodeString(text[len(multibaseBase64URL):])
	if err != nil {
		return nil, err
	}
	if len(multihash) != 2+sha256.Size ||
		multihash[0] != multihashSHA256 || multihash[1] != sha256.Size {
		return nil, errors.New("a certhash that is not SHA-256")
	}
	return multihash[2:], nil
}

func sha256Multihash(digest []byte) []byte {
	return append([]byte{multihashSHA256, sha256.Size}, digest...)
}

func (a address) String() string {
	family := "ip6"
	if a.socket.IP.To4() != nil {
		family = "ip4"
	}
	text := fmt.Sprintf("/%s/%s/udp/%d/webrtc-direct", family, a.socket.IP, a.socket.Port)
	if len(a.certificateHash) > 0 {
		encoded := base64.RawURLEncoding.EncodeToString(sha256Multihash(a.certificateHash))
		text += "/certhash/" + multibaseBase64URL + encoded
	}
	if a.peerID != "" {
		text += "/p2p/" + a.peerID
	}
	return text
}
