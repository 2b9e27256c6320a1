package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	multistreamProtocol = "/multistream/1.0.0"
	multistreamRefusal  = "na"
	// longestProtocol is longer than any name here; it bounds what a peer can make us allocate.
	longestProtocol = 1024
)

func appendMultistream(out []byte, text string) []byte {
	out = binary.AppendUvarint(out, uint64(len(text)+1))
	return append(append(out, text...), '\n')
}

// oneByte reads single bytes for binary.ReadUvarint, without reading ahead: what follows belongs to
// the protocol.
type oneByte struct{ io.Reader }

func (r oneByte) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

func readMultistream(from io.Reader) (string, error) {
	length, err := binary.ReadUvarint(oneByte{from})
	if err != nil {
		return "", err
	}
	if length == 0 || length > longestProtocol {
		return "", fmt.Errorf("a protocol of %d bytes", length)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(from, text); err != nil {
		return "", err
	}
	if text[length-1] != '\n' {
		return "", errors.New("a protocol without an end of line")
	}
	return string(text[:length-1]), nil
}

func expectMultistream(from io.Reader, expected string) error {
	got, err := readMultistream(from)
	if err == nil && got != expected {
		err = fmt.Errorf("%q, not %q", got, expected)
	}
	return err
}

// propose is the opener's side.
func propose(s io.ReadWriter, protocol string) error {
	both := appendMultistream(appendMultistream(nil, multistreamProtocol), protocol)
	if _, err := s.Write(both); err != nil {
		return err
	}
	if err := expectMultistream(s, multistreamProtocol); err != nil {
		return err
	}
	return expectMultistream(s, protocol)
}

// negotiate is the responder's side. It returns the first supported protocol.
func negotiate(s io.ReadWriter, known func(string) bool) (string, error) {
	if err := expectMultistream(s, multistreamProtocol); err != nil {
		return "", err
	}
	if _, err := s.Write(appendMultistream(nil, multistreamProtocol)); err != nil {
		return "", err
	}
	for {
		protocol, err := readMultistream(s)
		if err != nil {
			return "", err
		}
		answer := protocol
		if !known(protocol) {
			answer = multistreamRefusal
		}
		if _, err := s.Write(appendMultistream(nil, answer)); err != nil {
			return "", err
		}
		if answer == protocol {
			return protocol, nil
		}
	}
}
