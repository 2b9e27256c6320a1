package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
)

// The fields of PublicKey in the libp2p peer id specification, and the only supported type of key.
const (
	publicKeyTypeField = 1
	publicKeyDataField = 2
	keyTypeEd25519     = 1
)

// The identity code of multihash: the digest is the content itself, as for short keys.
const multihashIdentity = 0x00

// identity is the key that identifies a peer.
type identity struct {
	key ed25519.PrivateKey
}

func newIdentity() (identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return identity{key}, err
}

func (i identity) publicKey() publicKey {
	return publicKey(i.key.Public().(ed25519.PublicKey))
}

func (i identity) sign(message []byte) []byte {
	return ed25519.Sign(i.key, message)
}

type publicKey ed25519.PublicKey

func (k publicKey) marshal() []byte {
	out := appendVarintField(nil, publicKeyTypeField, keyTypeEd25519)
	return appendBytesField(out, publicKeyDataField, k)
}

func unmarshalPublicKey(message []byte) (publicKey, error) {
	var keyType uint64
	var key publicKey
	err := eachField(message, func(field protobufField) {
		switch field.number {
		case publicKeyTypeField:
			keyType = field.varint
		case publicKeyDataField:
			key = append(publicKey{}, field.bytes...)
		}
	})
	switch {
	case err != nil:
		return nil, err
	case keyType != keyTypeEd25519:
		return nil, fmt.Errorf("a key of type %d; only Ed25519 is known", keyType)
	case len(key) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("an Ed25519 key of %d bytes", len(key))
	}
	return key, nil
}

func (k publicKey) verify(message, signature []byte) bool {
	return ed25519.Verify(ed25519.PublicKey(k), message, signature)
}

func (k publicKey) peerID() string {
	marshalled := k.marshal()
	return encodeBase58(append([]byte{multihashIdentity, byte(len(marshalled))}, marshalled...))
}

const base58Alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

func encodeBase58(input []byte) string {
	var reversed []byte
	number, base, digit := new(big.Int).SetBytes(input), big.NewInt(58), new(big.Int)
	for number.Sign() > 0 {
		number.DivMod(number, base, digit)
		reversed = append(reversed, base58Alphabet[digit.Int64()])
	}
	// A leading zero byte is no part of the number.
	for _, b := range input {
		if b != 0 {
			break
		}
		reversed = append(reversed, base58Alphabet[0])
	}
	for i, j := 0, len(reversed)-1; i < j; i, j = i+1, j-1 {
		reversed[i], reversed[j] = reversed[j], reversed[i]
	}
	return string(reversed)
}

func validatePeerID(text string) error {
	if text == "" || len(bytes.Trim([]byte(text), base58Alphabet)) != 0 {
		return errors.New("a peer id that is not base58")
	}
	return nil
}
