package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pion/datachannel"
)

const (
	// finAckWait is how long a closed stream waits for FIN_ACK.
	finAckWait = 10 * time.Second
	// sendBuffer is what may wait in the channel, unacknowledged bytes included.
	sendBuffer = 2 * maxMessageSize
	// leastRoom is the room without which a write waits, as tiny frames are not worth sending.
	leastRoom = 1 << 10
	// frameOverhead is the prefix and the header of a payload.
	frameOverhead = 7
)

var (
	errWriteAfterFIN = errors.New("write after the end")
	// inThePast is a deadline that ends whatever read goes on.
	inThePast = time.Unix(1, 0)
)

// resetError is why a half ended that did not end with FIN.
type resetError struct {
	code   uint32
	remote bool
	// The channel was closed without a flag, which some peers mean by it.
	closed bool
}

func (e *resetError) Error() string {
	switch {
	case e.closed:
		return "channel closed without FIN"
	case e.remote:
		return fmt.Sprintf("reset by the peer with code %d", e.code)
	}
	return fmt.Sprintf("reset here with code %d", e.code)
}

type receiveState int

const (
	receiving receiveState = iota
	receivedFIN
	receiveReset
)

type sendState int

const (
	sending sendState = iota
	sentFIN
	ackedFIN
	sendReset
)

// stream is a substream with go-libp2p's habits:
//
//   - What comes is looked at only while the application reads, so FIN is acknowledged, and RESET and
//     STOP_SENDING are noticed, when it has read that far. A write that waits for room notices nothing.
//   - Its number is in use until the application closes or resets it, whatever the peer does.
//   - Once the read half is over, a goroutine reads on for the flags that concern the write half, and
//     closes the channel when that is over too.
type stream struct {
	number  uint16
	channel *datachannel.DataChannel
	// Held by who reads frames; taken before mu.
	reading sync.Mutex
	frames  frameReader

	mu sync.Mutex
	// What is left of the frame that was read last; its flag acts once its payload is consumed.
	current      *frame
	receive      receiveState
	receiveError error
	send         sendState
	sendError    error
	// Set by close: no longer is FIN_ACK waited for.
	ackDeadline time.Time
	// The connection's end, which ends everything.
	shutdown error

	// Signals that a write that waits should look again.
	room       chan struct{}
	drainOnce  sync.Once
	forgetOnce sync.Once
	// Takes the number out of the connection's table.
	forget func()
	// Closed with the channel.
	over chan struct{}
}

func newStream(number uint16, channel *datachannel.DataChannel, forget func()) *stream {
	s := &stream{
		number:  number,
		channel: channel,
		frames:  newFrameReader(channel),
		room:    make(chan struct{}, 1),
		forget:  forget,
		over:    make(chan struct{}),
	}
	channel.SetBufferedAmountLowThreshold(sendBuffer - maxMessageSize)
	channel.OnBufferedAmountLow(s.signalRoom)
	return s
}

func (s *stream) signalRoom() {
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// Read reads payload, io.EOF once FIN was reached, and a resetError behind a reset.
func (s *stream) Read(out []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.readEnd(); err != nil {
			return 0, err
		}
		if s.current == nil {
			s.mu.Unlock()
			next, err := s.frames.read()
			s.mu.Lock()
			if err != nil {
				return 0, s.readFailed(err)
			}
			s.current = &next
		}
		if n := copy(out, s.current.payload); n > 0 {
			s.current.payload = s.current.payload[n:]
			return n, nil
		}
		if len(s.current.payload) > 0 {
			return 0, nil
		}
		s.act(*s.current)
		s.current = nil
	}
}

func (s *stream) readEnd() error {
	switch {
	case s.shutdown != nil:
		return s.shutdown
	case s.receive == receivedFIN:
		return io.EOF
	case s.receive == receiveReset:
		return s.receiveError
	}
	return nil
}

// readFailed tells what an error of the channel means to the application.
func (s *stream) readFailed(err error) error {
	if end := s.readEnd(); end != nil {
		return end
	}
	if errors.Is(err, io.EOF) {
		s.receive, s.receiveError = receiveReset, &resetError{remote: true, closed: true}
		return s.receiveError
	}
	return err
}

// act does what the flag of a frame that was read to its end says.
func (s *stream) act(f frame) {
	if !f.hasFlag {
		return
	}
	byPeer := &resetError{code: f.code, remote: true}
	unfinished := s.send == sending || s.send == sentFIN
	switch f.flag {
	case flagFIN:
		if s.receive == receiving {
			s.receive = receivedFIN
		}
		// A peer that does not get it finds out by its own timer, or by the closing of the channel.
		_ = writeFrame(s.channel, frame{hasFlag: true, flag: flagFINAck})
		s.drain()
	case flagFINAck:
		s.send = ackedFIN
		s.signalRoom()
	case flagStopSending:
		// After FIN too: a peer that stops reading may not acknowledge FIN any more.
		if unfinished {
			s.send, s.sendError = sendReset, byPeer
		}
		s.signalRoom()
	case flagReset:
		if s.receive == receiving {
			s.receive, s.receiveError = receiveReset, byPeer
		}
		if unfinished {
			s.send, s.sendError = sendReset, byPeer
		}
		s.signalRoom()
		s.drain()
	}
}

// Write returns when the channel has everything, which is not when the peer has it.
func (s *stream) Write(content []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for written < len(content) {
		if err := s.writeEnd(); err != nil {
			return written, err
		}
		room := sendBuffer - int(s.channel.BufferedAmount())
		if room < leastRoom {
			s.mu.Unlock()
			<-s.room
			s.mu.Lock()
			continue
		}
		if room > maxMessageSize {
			room = maxMessageSize
		}
		piece := content[written:]
		if len(piece) > room-frameOverhead {
			piece = piece[:room-frameOverhead]
		}
		if err := writeFrame(s.channel, frame{payload: piece}); err != nil {
			return written, err
		}
		written += len(piece)
	}
	return written, nil
}

func (s *stream) writeEnd() error {
	switch {
	case s.shutdown != nil:
		return s.shutdown
	case s.send == sendReset:
		return s.sendError
	case s.send == sentFIN || s.send == ackedFIN:
		return errWriteAfterFIN
	}
	return nil
}

// closeWrite sends FIN.
func (s *stream) closeWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.send != sending {
		return nil
	}
	s.send = sentFIN
	s.channel.OnBufferedAmountLow(nil)
	s.signalRoom()
	return writeFrame(s.channel, frame{hasFlag: true, flag: flagFIN})
}

// closeRead sends STOP_SENDING, unless the peer has finished anyway.
func (s *stream) closeRead(code uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.receive == receiving && s.shutdown == nil {
		err = writeFrame(s.channel, frame{hasFlag: true, flag: flagStopSending, code: code})
		s.receive, s.receiveError = receiveReset, &resetError{code: code}
	}
	s.drain()
	return err
}

// close ends both halves and gives the number back. It waits for nothing: FIN_ACK comes later.
func (s *stream) close() error {
	defer s.forgetNumber()
	if s.isShutDown() {
		return nil
	}
	if err := firstError(s.closeWrite(), s.closeRead(0)); err != nil {
		s.reset(0)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ackDeadline.IsZero() {
		s.ackDeadline = time.Now().Add(finAckWait)
		// So that who reads for flags takes notice of it.
		_ = s.channel.SetReadDeadline(inThePast)
	}
	return nil
}

// reset ends both halves abruptly and gives the number back.
func (s *stream) reset(code uint32) {
	defer s.forgetNumber()
	if s.isShutDown() {
		return
	}
	s.mu.Lock()
	if s.send == sending || s.send == sentFIN {
		s.send, s.sendError = sendReset, &resetError{code: code}
		s.channel.OnBufferedAmountLow(nil)
		s.signalRoom()
		_ = writeFrame(s.channel, frame{hasFlag: true, flag: flagReset, code: code})
	}
	s.mu.Unlock()
	_ = s.closeRead(code)
	_ = s.channel.SetReadDeadline(inThePast)
}

// end is the connection's: nothing of the stream works any more.
func (s *stream) end(cause error) {
	defer s.forgetNumber()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutdown = cause
	s.signalRoom()
	// Flags that came before the end still count for who waits in finished.
	s.drain()
}

func (s *stream) isShutDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shutdown != nil
}

func (s *stream) forgetNumber() {
	s.forgetOnce.Do(s.forget)
}

// drain starts the goroutine that reads on behind the end of the read half.
func (s *stream) drain() {
	s.drainOnce.Do(func() { go s.readFlags() })
}

func (s *stream) readFlags() {
	defer close(s.over)
	// Else the timer of the last deadline outlives the stream.
	defer func() { _ = s.channel.SetReadDeadline(time.Time{}) }()
	defer func() { _ = s.channel.Close() }()
	// Whoever waits in Read gives way, and finds the read half over when it looks again.
	_ = s.channel.SetReadDeadline(inThePast)
	s.reading.Lock()
	s.mu.Lock()
	s.reading.Unlock()
	defer s.mu.Unlock()

	if s.current != nil {
		s.act(*s.current)
		s.current = nil
	}
	for !s.isOver() {
		_ = s.channel.SetReadDeadline(s.ackDeadline)
		s.mu.Unlock()
		next, err := s.frames.read()
		s.mu.Lock()
		switch {
		case err == nil:
			s.act(next)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		}
		// A deadline may be one that was replaced already: only the clock tells.
	}
}

// isOver tells whether no flag is waited for any more.
func (s *stream) isOver() bool {
	return s.send == ackedFIN || s.send == sendReset ||
		(!s.ackDeadline.IsZero() && time.Now().After(s.ackDeadline))
}

// finished waits until both sides have closed the channel, by when the peer has got everything, and tells
// whether FIN was acknowledged, or refused by a peer that reads no more. go-libp2p waits for neither.
func (s *stream) finished(limit time.Duration) error {
	giveUp := time.Now().Add(limit)
	select {
	case <-s.over:
	case <-time.After(limit):
		return fmt.Errorf("substream still open %v after its close", limit)
	}
	if err := s.awaitPeersClose(giveUp); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var byPeer *resetError
	switch {
	case s.send == ackedFIN:
		return nil
	case errors.As(s.sendError, &byPeer) && byPeer.remote:
		return nil
	case s.shutdown != nil:
		return s.shutdown
	}
	return fmt.Errorf("FIN was not acknowledged within %v", finAckWait)
}

func (s *stream) awaitPeersClose(giveUp time.Time) error {
	defer func() { _ = s.channel.SetReadDeadline(time.Time{}) }()
	rest := make([]byte, maxMessageSize)
	for time.Now().Before(giveUp) {
		_ = s.channel.SetReadDeadline(giveUp)
		if _, err := s.channel.Read(rest); errors.Is(err, io.EOF) {
			return nil
		}
		// Anything else is a late flag, or a deadline that was replaced already.
	}
	return errors.New("the peer did not close the channel")
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
