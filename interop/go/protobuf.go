package main

import (
	"encoding/binary"
	"errors"
)

// Wire types of protobuf.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

var errProtobuf = errors.New("not a protobuf message")

func appendVarintField(out []byte, number, value uint64) []byte {
	out = binary.AppendUvarint(out, number<<3|wireVarint)
	return binary.AppendUvarint(out, value)
}

func appendBytesField(out []byte, number uint64, value []byte) []byte {
	out = binary.AppendUvarint(out, number<<3|wireBytes)
	out = binary.AppendUvarint(out, uint64(len(value)))
	return append(out, value...)
}

// protobufField is one field of a message; its wire type determines which of the values is set.
type protobufField struct {
	number   uint64
	wireType uint64
	varint   uint64
	bytes    []byte
}

// eachField passes every field to visit. Values are slices of message.
func eachField(message []byte, visit func(protobufField)) error {
	for len(message) > 0 {
		key, n := binary.Uvarint(message)
		if n <= 0 {
			return errProtobuf
		}
		message = message[n:]
		field := protobufField{number: key >> 3, wireType: key & 7}
		length := 0
		switch field.wireType {
		case wireVarint:
			if field.varint, n = binary.Uvarint(message); n <= 0 {
				return errProtobuf
			}
			length = n
		case wireBytes:
			size, n := binary.Uvarint(message)
			if n <= 0 || size > uint64(len(message)-n) {
				return errProtobuf
			}
			length = n + int(size)
			field.bytes = message[n:length]
		case wireFixed64:
			length = 8
		case wireFixed32:
			length = 4
		default:
			return errProtobuf
		}
		if length > len(message) {
			return errProtobuf
		}
		message = message[length:]
		visit(field)
	}
	return nil
}
