package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

type flag uint64

const (
	flagFIN         flag = 0
	flagStopSending flag = 1
	flagReset       flag = 2
	flagFINAck      flag = 3
)

// Fields of the Message of the libp2p webrtc specification, and go-libp2p's error code.
const (
	frameFlagField      = 1
	framePayloadField   = 2
	frameErrorCodeField = 3
)

const (
	// readBuffer is the buffer of the reader below go-libp2p's: a read of a data channel takes a
	// whole message or fails, so no longer message can come where a prefix is expected.
	readBuffer = 4096
	// maxReceivedFrame is go-libp2p's limit of a frame's body.
	maxReceivedFrame = 257 << 10
)

type frame struct {
	hasFlag bool
	flag    flag
	payload []byte
	code    uint32
}

func (f frame) marshal() []byte {
	var out []byte
	if f.hasFlag {
		out = appendVarintField(out, frameFlagField, uint64(f.flag))
	}
	if len(f.payload) > 0 {
		out = appendBytesField(out, framePayloadField, f.payload)
	}
	if f.code != 0 {
		out = appendVarintField(out, frameErrorCodeField, uint64(f.code))
	}
	return out
}

func unmarshalFrame(body []byte) (frame, error) {
	var f frame
	err := eachField(body, func(field protobufField) {
		switch {
		case field.number == frameFlagField && field.wireType == wireVarint:
			f.hasFlag, f.flag = true, flag(field.varint)
		case field.number == framePayloadField && field.wireType == wireBytes:
			f.payload = field.bytes
		case field.number == frameErrorCodeField && field.wireType == wireVarint:
			f.code = uint32(field.varint)
		}
	})
	return f, err
}

// frameReader reads frames from a channel whose Read returns one message at a time.
type frameReader struct {
	buffered *bufio.Reader
}

func newFrameReader(channel io.Reader) frameReader {
	return frameReader{bufio.NewReaderSize(channel, readBuffer)}
}

func (r frameReader) read() (frame, error) {
	length, err := binary.ReadUvarint(r.buffered)
	if err != nil {
		return frame{}, err
	}
	if length > maxReceivedFrame {
		return frame{}, fmt.Errorf("a frame of %d bytes", length)
	}
	// A body that is longer than the buffered bytes is read from the channel into this.
	body := make([]byte, length)
	if _, err := io.ReadFull(r.buffered, body); err != nil {
		return frame{}, err
	}
	return unmarshalFrame(body)
}

// writeFrame sends prefix and body as separate messages, as go-libp2p does.
func writeFrame(channel io.Writer, f frame) error {
	body := f.marshal()
	if _, err := channel.Write(binary.AppendUvarint(nil, uint64(len(body)))); err != nil {
		return err
	}
	_, err := channel.Write(body)
	return err
}
