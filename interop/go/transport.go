package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/ice/v2"
	"github.com/pion/logging"
	"github.com/pion/webrtc"
)

const (
	setupTimeout = 10 * time.Second
	// iceKeepalive is go-libp2p's: a check is sent after this time without sending or receiving.
	iceKeepalive = 15 * time.Second
	// receiveWindow is that of the association, as in go-libp2p: ten of its largest frames.
	receiveWindow = 10 * maxReceivedFrame
	receiveMTU    = 1500
)

type iceTimeouts struct {
	disconnected time.Duration
	failed       time.Duration
}

// defaultICETimeouts are go-libp2p's: a dead peer is detected after the sum of both.
var defaultICETimeouts = iceTimeouts{disconnected: 20 * time.Second, failed: 30 * time.Second}

// transport makes connections with one identity and one certificate.
type transport struct {
	identity    identity
	certificate webrtc.Certificate
	fingerprint []byte
	ice         iceTimeouts
}

func newTransport(timeouts iceTimeouts) (*transport, error) {
	own, err := newIdentity()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	certificate, err := webrtc.GenerateCertificate(key)
	if err != nil {
		return nil, err
	}
	fingerprints, err := certificate.GetFingerprints()
	if err != nil {
		return nil, err
	}
	fingerprint, err := hex.DecodeString(strings.ReplaceAll(fingerprints[0].Value, ":", ""))
	if err != nil {
		return nil, err
	}
	return &transport{own, *certificate, fingerprint, timeouts}, nil
}

// settings are common to both sides.
func (t *transport) settings(ufrag, password string) webrtc.SettingEngine {
	// Only lines of JSON go to stdout.
	loggers := logging.NewDefaultLoggerFactory()
	loggers.Writer = os.Stderr
	settings := webrtc.SettingEngine{LoggerFactory: loggers}
	settings.SetICECredentials(ufrag, password)
	settings.DetachDataChannels()
	settings.SetIncludeLoopbackCandidate(true)
	settings.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	keepalive := iceKeepalive
	if t.ice != defaultICETimeouts {
		keepalive = t.ice.disconnected / 2
	}
	settings.SetICETimeouts(t.ice.disconnected, t.ice.failed, keepalive)
	settings.SetSCTPMaxReceiveBufferSize(receiveWindow)
	settings.SetReceiveMTU(receiveMTU)
	return settings
}

func (t *transport) connection(settings webrtc.SettingEngine, dialled bool) (*connection, error) {
	api := webrtc.NewAPI(webrtc.WithSettingEngine(settings))
	config := webrtc.Configuration{Certificates: []webrtc.Certificate{t.certificate}}
	return newConnection(api, config, dialled)
}

// dial connects to a listener and authenticates it.
func (t *transport) dial(to address, version int) (*connection, error) {
	c, err := newCredentials(version)
	if err != nil {
		return nil, err
	}
	settings := t.settings(c.clientUfrag, c.clientPassword)
	settings.SetPrflxAcceptanceMinWait(0)
	conn, err := t.connection(settings, true)
	if err != nil {
		return nil, err
	}
	return conn, conn.establish(t, false, func() error {
		offer, err := conn.peer.CreateOffer(nil)
		if err != nil {
			return err
		}
		if err := conn.peer.SetLocalDescription(offer); err != nil {
			return err
		}
		return conn.peer.SetRemoteDescription(webrtc.SessionDescription{
			Type: webrtc.SDPTypeAnswer,
			SDP:  serverAnswer(to, c),
		})
	}, to.peerID)
}

// answer accepts the dialler whose first check came from that address.
func (t *transport) answer(mux *udpMux, from *net.UDPAddr, c credentials) (*connection, error) {
	settings := t.settings(c.serverUfrag, c.serverUfrag)
	settings.SetLite(true)
	settings.SetICEUDPMux(mux)
	if err := settings.SetAnsweringDTLSRole(webrtc.DTLSRoleServer); err != nil {
		return nil, err
	}
	settings.DisableCertificateFingerprintVerification(true)
	conn, err := t.connection(settings, false)
	if err != nil {
		return nil, err
	}
	return conn, conn.establish(t, true, func() error {
		err := conn.peer.SetRemoteDescription(webrtc.SessionDescription{
			Type: webrtc.SDPTypeOffer,
			SDP:  clientOffer(from, c),
		})
		if err != nil {
			return err
		}
		answer, err := conn.peer.CreateAnswer(nil)
		if err != nil {
			return err
		}
		return conn.peer.SetLocalDescription(answer)
	}, "")
}

// establish negotiates, waits for the transport, and runs Noise. A connection that fails is closed.
func (c *connection) establish(
	t *transport, server bool, negotiate func() error, expected string,
) error {
	opened := make(chan struct{})
	c.noise.OnOpen(func() { close(opened) })
	err := negotiate()
	if err == nil {
		select {
		case <-opened:
			err = c.authenticate(t, server, expected)
		case <-c.ended:
			err = c.endedBy()
		case <-time.After(setupTimeout):
			err = errors.New("no channel within " + setupTimeout.String())
		}
	}
	if err != nil {
		c.closeWith(err)
	}
	return err
}

func (c *connection) authenticate(t *transport, server bool, expected string) error {
	detached, err := c.noise.Detach()
	if err != nil {
		return err
	}
	channel := newStream(noiseChannel, detached.(*datachannel.DataChannel), func() {})
	// Ends a pending operation of Noise.
	deadline := time.AfterFunc(setupTimeout, func() {
		c.closeWith(errors.New("Noise takes too long"))
	})
	defer deadline.Stop()

	remote := sha256.Sum256(c.peer.SCTP().Transport().GetRemoteCertificate())
	prologue := noisePrologue(t.fingerprint, remote[:])
	if server {
		prologue = noisePrologue(remote[:], t.fingerprint)
	}
	key, err := authenticate(channel, t.identity, prologue, server)
	if err != nil {
		return fmt.Errorf("Noise: %w", err)
	}
	c.remote = key.peerID()
	if expected != "" && c.remote != expected {
		return fmt.Errorf("the peer is %s, not %s", c.remote, expected)
	}
	return nil
}
