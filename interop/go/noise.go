package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"
)

const (
	prologuePrefix  = "libp2p-webrtc-noise:"
	signaturePrefix = "noise-libp2p-static-key:"

	// Fields of the NoiseHandshakePayload.
	identityKeyField       = 1
	identitySignatureField = 2
)

// noisePrologue binds Noise to the certificates of both sides, by their SHA-256.
func noisePrologue(client, server []byte) []byte {
	out := append([]byte(prologuePrefix), sha256Multihash(client)...)
	return append(out, sha256Multihash(server)...)
}

// authenticate runs Noise XX, which the server of the connection starts. It returns the remote's
// key.
func authenticate(
	channel io.ReadWriter, own identity, prologue []byte, server bool,
) (publicKey, error) {
	suite := noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashSHA256)
	static, err := suite.GenerateKeypair(rand.Reader)
	if err != nil {
		return nil, err
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite:   suite,
		Pattern:       noise.HandshakeXX,
		Initiator:     server,
		Prologue:      prologue,
		StaticKeypair: static,
	})
	if err != nil {
		return nil, err
	}
	send := func(payload []byte) error {
		message, _, _, err := state.WriteMessage(nil, payload)
		if err != nil {
			return err
		}
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(message)))
		_, err = channel.Write(append(framed, message...))
		return err
	}
	receive := func() ([]byte, error) {
		var length [2]byte
		if _, err := io.ReadFull(channel, length[:]); err != nil {
			return nil, err
		}
		message := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(channel, message); err != nil {
			return nil, err
		}
		payload, _, _, err := state.ReadMessage(nil, message)
		return payload, err
	}
	payload := noisePayload(own, static.Public)
	if server {
		if err := send(nil); err != nil {
			return nil, err
		}
		remote, err := receive()
		if err != nil {
			return nil, err
		}
		key, err := verifyNoisePayload(remote, state.PeerStatic())
		if err != nil {
			return nil, err
		}
		return key, send(payload)
	}
	if _, err := receive(); err != nil {
		return nil, err
	}
	if err := send(payload); err != nil {
		return nil, err
	}
	remote, err := receive()
	if err != nil {
		return nil, err
	}
	return verifyNoisePayload(remote, state.PeerStatic())
}

func noisePayload(own identity, static []byte) []byte {
	out := appendBytesField(nil, identityKeyField, own.publicKey().marshal())
	signature := own.sign(append([]byte(signaturePrefix), static...))
	return appendBytesField(out, identitySignatureField, signature)
}

func verifyNoisePayload(payload, static []byte) (publicKey, error) {
	var marshalled, signature []byte
	err := eachField(payload, func(field protobufField) {
		switch field.number {
		case identityKeyField:
			marshalled = field.bytes
		case identitySignatureField:
			signature = field.bytes
		}
	})
	if err != nil {
		return nil, err
	}
	key, err := unmarshalPublicKey(marshalled)
	if err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	if !key.verify(append([]byte(signaturePrefix), static...), signature) {
		return nil, errors.New("the identity key did not sign the Noise key")
	}
	return key, nil
}
