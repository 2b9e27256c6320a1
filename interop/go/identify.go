package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

const (
	agentVersion    = "anabranch-interop-go/pion"
	protocolVersion = "ipfs/0.1.0"
	longestIdentify = 64 << 10

	// Fields of the libp2p identify specification.
	identifyPublicKeyField       = 1
	identifyProtocolsField       = 3
	identifyProtocolVersionField = 5
	identifyAgentVersionField    = 6
)

type identifyMessage struct {
	protocols []string
	agent     string
}

// marshalIdentify returns the message with its length prefix.
func marshalIdentify(own publicKey, protocols []string) []byte {
	body := appendBytesField(nil, identifyPublicKeyField, own.marshal())
	for _, protocol := range protocols {
		body = appendBytesField(body, identifyProtocolsField, []byte(protocol))
	}
	body = appendBytesField(body, identifyProtocolVersionField, []byte(protocolVersion))
	body = appendBytesField(body, identifyAgentVersionField, []byte(agentVersion))
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

// readIdentify reads the message and the end of the stream.
func readIdentify(from io.Reader) (identifyMessage, error) {
	all, err := io.ReadAll(io.LimitReader(from, longestIdentify))
	if err != nil {
		return identifyMessage{}, err
	}
	body := bytes.NewBuffer(all)
	length, err := binary.ReadUvarint(body)
	if err != nil || length != uint64(body.Len()) {
		return identifyMessage{}, errors.New("not one whole message")
	}
	var message identifyMessage
	err = eachField(body.Bytes(), func(field protobufField) {
		switch field.number {
		case identifyProtocolsField:
			message.protocols = append(message.protocols, string(field.bytes))
		case identifyAgentVersionField:
			message.agent = string(field.bytes)
		}
	})
	return message, err
}
