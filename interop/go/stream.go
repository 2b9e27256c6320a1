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
	// sendBuffer is the limit of bytes in the channel, including unacknowledged ones.
	sendBuffer = 2 * maxMessageSize
	// leastRoom is the room that a write waits for: tiny frames are not worth sending.
	leastRoom = 1 << 10
	// frameOverhead is the prefix and the header of a payload.
	frameOverhead = 7
)

var (
	errWriteAfterFIN = errors.New("write after the end")
	// inThePast is a deadline that ends a pending read.
	inThePast = time.Unix(1, 0)
)

// resetError is why a half ended without FIN.
type resetError struct {
	code   uint32
	remote bool
	// The channel was closed without a flag, with which some peers reset.
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
//   - Frames are processed only while the application reads. So FIN is acknowledged, and RESET and
//     STOP_SENDING take effect, once it has read that far. A write that waits for room sees none.
//   - Its number is in use until the application closes or resets it, whatever the peer does.
//   - Once the read half is over, a goroutine continues to read the flags that concern the write
//     half, and closes the channel when that is over too.
type stream struct {
	number  uint16
	channel *datachannel.DataChannel
	// Held by the reader of frames; taken before mu.
	reading sync.Mutex
	frames  frameReader

	mu sync.Mutex
	// The rest of the last frame; its flag takes effect once its payload is consumed.
	current      *frame
	receive      receiveState
	receiveError error
	send         sendState
	sendError    error
	// Set by close: when the wait for FIN_ACK ends.
	ackDeadline time.Time
	// The end of the connection, which ends everything.
	shutdown error

	// Wakes a waiting write.
	room       chan struct{}
	drainOnce  sync.Once
	forgetOnce sync.Once
	// Removes the number from the connection's table.
	forget func()
	// Closed together with the channel.
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

// Read reads payload, io.EOF once FIN was reached, and a resetError after a reset.
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

// readFailed translates an error of the channel for the application.
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

// act applies the flag of a frame that was read to its end.
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
		// A peer that does not get it learns of it by its own timer, or by the close of the channel.
		_ = writeFrame(s.channel, frame{hasFlag: true, flag: flagFINAck})
		s.drain()
	case flagFINAck:
		s.send = ackedFIN
		s.signalRoom()
	case flagStopSending:
		// Also after FIN: a peer that stops reading may not acknowledge FIN any more.
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

// Write returns when the channel has everything, which is before the peer has it.
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

// closeRead sends STOP_SENDING, unless the peer has finished.
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

// close ends both halves and releases the number. It does not wait: FIN_ACK comes later.
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
		// So that the reader of flags sees it.
		_ = s.channel.SetReadDeadline(inThePast)
	}
	return nil
}

// reset ends both halves abruptly and releases the number.
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

// end is called at the end of the connection: no operation of the stream works any more.
func (s *stream) end(cause error) {
	defer s.forgetNumber()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutdown = cause
	s.signalRoom()
	// Flags that came before the end still count for a waiter in finished.
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

// drain starts the goroutine that continues to read after the end of the read half.
func (s *stream) drain() {
	s.drainOnce.Do(func() { go s.readFlags() })
}

func (s *stream) readFlags() {
	defer close(s.over)
	// Otherwise the timer of the last deadline outlives the stream.
	defer func() { _ = s.channel.SetReadDeadline(time.Time{}) }()
	defer func() { _ = s.channel.Close() }()
	// A waiter in Read yields, and finds the read half over when it checks again.
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
		// The deadline may have been replaced already: only the clock is reliable.
	}
}

// isOver reports whether there is no flag left to wait for.
func (s *stream) isOver() bool {
	return s.send == ackedFIN || s.send == sendReset ||
		(!s.ackDeadline.IsZero() && time.Now().After(s.ackDeadline))
}

// finished waits until both sides have closed the channel, by when the peer has everything. It
// reports whether FIN was acknowledged, or refused by a peer that does not read any more. go-libp2p
// waits for neither.
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
		// Anything else is a late flag, or a deadline that has been replaced.
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
