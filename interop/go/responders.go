package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	protocolIdentify        = "/ipfs/id/1.0.0"
	protocolPing            = "/ipfs/ping/1.0.0"
	protocolEcho            = "/echo/1.0.0"
	protocolBench           = "/bench/1.0.0"
	protocolStall           = "/stall/1.0.0"
	protocolKeep            = "/keep/1.0.0"
	protocolHalfClose       = "/half-close/1.0.0"
	protocolHalfCloseRemote = "/half-close-remote/1.0.0"
	protocolHalfCloseResult = "/half-close-result/1.0.0"
	protocolResetMe         = "/reset-me/1.0.0"
	protocolResetResult     = "/reset-result/1.0.0"
	protocolResetYou        = "/reset-you/1.0.0"

	halfCloseBytes = 65536
	resetMeBytes   = 1024
	// stalled is the byte that a responder sends before it stops reading.
	stalled = 'S'
	// Codes of resets: for wrong content, and where the protocol demands a reset.
	codeWrong    = 0xbad
	codeResetYou = 7
	codeResetMe  = 9

	recordWait = 2 * time.Second
	// finishWait is slightly longer than a stream waits for FIN_ACK.
	finishWait = finAckWait + 2*time.Second
)

var servedProtocols = []string{
	protocolIdentify, protocolPing, protocolEcho, protocolBench, protocolStall, protocolKeep,
	protocolHalfClose, protocolHalfCloseRemote, protocolHalfCloseResult,
	protocolResetMe, protocolResetResult, protocolResetYou,
}

// responder answers the substreams that the peer of one connection opens.
type responder struct {
	identity identity
	// What one substream observes and another one asks for.
	halfClosed chan uint64
	sawReset   chan bool
}

// serve answers substreams until the connection ends, and reports those that fail.
func serve(conn *connection, own identity, report *report) {
	r := &responder{
		identity:   own,
		halfClosed: make(chan uint64, backlog),
		sawReset:   make(chan bool, backlog),
	}
	var responding sync.WaitGroup
	defer responding.Wait()
	for {
		s, err := conn.accept()
		if err != nil {
			return
		}
		responding.Add(1)
		go func() {
			defer responding.Done()
			protocol, err := negotiate(s, isServed)
			if err == nil {
				err = r.respond(s, protocol)
			}
			if err != nil {
				s.reset(codeWrong)
				report.responderFailed(protocol, err)
			}
		}()
	}
}

func isServed(protocol string) bool {
	for _, served := range servedProtocols {
		if protocol == served {
			return true
		}
	}
	return false
}

func (r *responder) respond(s *stream, protocol string) error {
	switch protocol {
	case protocolIdentify:
		if _, err := s.Write(marshalIdentify(r.identity.publicKey(), servedProtocols)); err != nil {
			return err
		}
		// The opener need not send anything, not even its end.
		return finish(s)
	case protocolPing, protocolEcho:
		if _, err := io.Copy(s, onlyReader{s}); err != nil {
			return err
		}
		return finish(s)
	case protocolBench:
		return respondBench(s)
	case protocolStall:
		return respondStall(s)
	case protocolKeep:
		return respondKeep(s)
	case protocolHalfClose:
		if _, err := io.Copy(io.Discard, s); err != nil {
			return err
		}
		return send(s, pattern(halfCloseBytes))
	case protocolHalfCloseRemote:
		return r.respondHalfCloseRemote(s)
	case protocolHalfCloseResult:
		right := ^uint64(0)
		select {
		case right = <-r.halfClosed:
		case <-time.After(recordWait):
		}
		return send(s, binary.BigEndian.AppendUint64(nil, right))
	case protocolResetMe:
		return r.respondResetMe(s)
	case protocolResetResult:
		saw := byte(0)
		select {
		case reset := <-r.sawReset:
			if reset {
				saw = 1
			}
		case <-time.After(recordWait):
		}
		return send(s, []byte{saw})
	case protocolResetYou:
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			return err
		}
		s.reset(codeResetYou)
		return nil
	}
	return fmt.Errorf("nobody negotiated %q", protocol)
}

// finish ends the substream and waits until the peer has acknowledged that.
func finish(s *stream) error {
	if err := s.close(); err != nil {
		return err
	}
	return s.finished(finishWait)
}

func finishAfter(s *stream, err error) error {
	if err != nil {
		return err
	}
	return finish(s)
}

// send writes the last of the content and finishes.
func send(s *stream, content []byte) error {
	if _, err := s.Write(content); err != nil {
		return err
	}
	return finish(s)
}

func readUint64(from io.Reader) (uint64, error) {
	var bytes [8]byte
	_, err := io.ReadFull(from, bytes[:])
	return binary.BigEndian.Uint64(bytes[:]), err
}

func respondBench(s *stream) error {
	up, err := readUint64(s)
	if err != nil {
		return err
	}
	down, err := readUint64(s)
	if err != nil {
		return err
	}
	if err := readPattern(s, up); err != nil {
		return err
	}
	if err := writePattern(s, down); err != nil {
		return err
	}
	return finish(s)
}

func respondStall(s *stream) error {
	up, err := readUint64(s)
	if err != nil {
		return err
	}
	hold, err := readUint64(s)
	if err != nil {
		return err
	}
	if _, err := s.Write([]byte{stalled}); err != nil {
		return err
	}
	time.Sleep(time.Duration(hold) * time.Millisecond)
	if err := readPattern(s, up); err != nil {
		return err
	}
	return send(s, binary.BigEndian.AppendUint64(nil, up))
}

// respondKeep reads until its substream is reset, and keeps it: its number stays in use while the
// connection lives.
func respondKeep(s *stream) error {
	if _, err := io.CopyN(s, s, 1); err != nil {
		return err
	}
	_, err := s.Read(make([]byte, 1))
	var reset *resetError
	if !errors.As(err, &reset) || !reset.remote || reset.closed {
		return fmt.Errorf("a substream that was to be reset: %v", err)
	}
	return nil
}

func (r *responder) respondHalfCloseRemote(s *stream) error {
	if _, err := s.Write(pattern(halfCloseBytes)); err != nil {
		return err
	}
	if err := s.closeWrite(); err != nil {
		return err
	}
	checker := &patternChecker{}
	_, err := io.Copy(checker, onlyReader{s})
	r.halfClosed <- checker.right
	if err != nil {
		return err
	}
	return finish(s)
}

func (r *responder) respondResetMe(s *stream) error {
	got := make([]byte, resetMeBytes)
	if _, err := io.ReadFull(s, got); err != nil {
		return err
	}
	if _, err := s.Write(got[resetMeBytes-1:]); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, s)
	var reset *resetError
	saw := errors.As(err, &reset) && reset.remote && !reset.closed && reset.code == codeResetMe
	r.sawReset <- saw
	if !saw {
		return fmt.Errorf("a substream that was to be reset with code %d: %v", codeResetMe, err)
	}
	return s.close()
}
