package main

import (
	"fmt"
	"io"
)

// patternPeriod: byte i of all content is i % 251.
const patternPeriod = 251

func pattern(length int) []byte {
	out := make([]byte, length)
	for i := range out {
		out[i] = byte(i % patternPeriod)
	}
	return out
}

// patternChecker counts the bytes of pattern that are written to it, and fails at the first other
// one.
type patternChecker struct{ right uint64 }

func (c *patternChecker) Write(content []byte) (int, error) {
	for i, b := range content {
		if b != byte(c.right%patternPeriod) {
			return i, fmt.Errorf("byte %d is wrong", c.right)
		}
		c.right++
	}
	return len(content), nil
}

// readPattern reads length bytes of pattern, and then the end.
func readPattern(from io.Reader, length uint64) error {
	checker := &patternChecker{}
	if _, err := io.Copy(checker, onlyReader{from}); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", checker.right, length, err)
	}
	if checker.right != length {
		return fmt.Errorf("%d of %d bytes came", checker.right, length)
	}
	return nil
}

// onlyReader hides all but Read, so that io.Copy uses a buffer of its own.
type onlyReader struct{ io.Reader }

const writeChunk = 64 << 10

func writePattern(to io.Writer, length uint64) error {
	// A whole number of periods, so that each piece continues the one before.
	piece := pattern(writeChunk / patternPeriod * patternPeriod)
	for length > 0 {
		if length < uint64(len(piece)) {
			piece = piece[:length]
		}
		n, err := to.Write(piece)
		if err != nil {
			return err
		}
		length -= uint64(n)
	}
	return nil
}
