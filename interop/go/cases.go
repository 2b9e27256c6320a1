package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// caseLimit is the limit of one use of a substream.
	caseLimit = 15 * time.Second
	leftWait  = 5 * time.Second

	pings        = 5
	pingBytes    = 32
	bulkStreams  = 3
	bulkBytes    = 4 << 20
	burstStreams = 200
	burstBytes   = 10_000

	// stallTime is how long a reader stops, and stallBytes what it leaves unread: more than the
	// window of this association, less than the ceiling of the remote's substream.
	stallTime       = 2 * time.Second
	stallBytes      = 3 << 20
	neighbours      = 20
	neighbourBytes  = 10_000
	neighbourLimit  = time.Second
	stallHoldMillis = uint64(stallTime / time.Millisecond)

	// busyTime is longer than iceKeepalive, and than a listener may wait for checks.
	busyTime  = 17 * time.Second
	busyPause = 50 * time.Millisecond
)

// errReportedItself is the error of a case that has written its line.
var errReportedItself = errors.New("reported")

type namedCase struct {
	name string
	run  func(run) error
	// The case runs only if it is named.
	onRequest bool
}

// allCases are all cases in the order in which they run.
var allCases = []namedCase{
	{name: "identify", run: run.identify},
	{name: "ping", run: run.ping},
	{name: "echo-100k", run: func(r run) error { return r.echo(100_000) }},
	{name: "bulk-3x4m", run: run.bulk},
	{name: "sequential-50", run: func(r run) error { return r.sequential(50) }},
	{name: "sequential-500", run: func(r run) error { return r.sequential(500) }},
	{name: "echo-200x10k", run: run.bursts},
	{name: "half-close-local", run: run.halfCloseLocal},
	{name: "half-close-remote", run: run.halfCloseRemote},
	{name: "reset-local", run: run.resetLocal},
	{name: "reset-remote", run: run.resetRemote},
	{name: "stall-local", run: run.stallLocal},
	{name: "stall-remote", run: run.stallRemote},
	{name: "busy-17s", run: run.busy},
	{name: "serve", run: run.serve, onRequest: true},
	{name: "close", run: run.close},
}

func findCase(name string) *namedCase {
	for i := range allCases {
		if allCases[i].name == name {
			return &allCases[i]
		}
	}
	return nil
}

// with opens a substream for use, which ends it. Every failure resets it, so that a case leaves
// nothing to the next one.
func (r run) with(protocol string, use func(*stream) error) error {
	s, err := r.conn.open()
	if err != nil {
		return fmt.Errorf("opening %s: %w", protocol, err)
	}
	var late atomic.Bool
	watchdog := time.AfterFunc(caseLimit, func() {
		late.Store(true)
		s.reset(codeWrong)
	})
	defer watchdog.Stop()
	if err = propose(s, protocol); err == nil {
		err = use(s)
	}
	if err == nil {
		return nil
	}
	s.reset(codeWrong)
	if late.Load() {
		return fmt.Errorf("%s is not done within %v", protocol, caseLimit)
	}
	return fmt.Errorf("%s: %w", protocol, err)
}

// exchange writes and finishes while it reads to the end; both halves must end in order.
func exchange(s *stream, write, read func() error) error {
	wrote := make(chan error, 1)
	go func() {
		err := write()
		if err == nil {
			err = s.closeWrite()
		}
		wrote <- err
	}()
	if err := read(); err != nil {
		// Releases a write whose reader is gone.
		s.reset(codeWrong)
		return firstError(err, <-wrote)
	}
	return finishAfter(s, <-wrote)
}

func (r run) echo(length int) error {
	content := pattern(length)
	return r.with(protocolEcho, func(s *stream) error {
		return exchange(s,
			func() error { return writeAll(s, content) },
			func() error { return expectDigest(s, content) })
	})
}

func writeAll(to io.Writer, content []byte) error {
	_, err := to.Write(content)
	return err
}

func expectDigest(from io.Reader, content []byte) error {
	digest := sha256.New()
	count, err := io.Copy(digest, onlyReader{from})
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", count, len(content), err)
	}
	expected := sha256.Sum256(content)
	if !bytes.Equal(digest.Sum(nil), expected[:]) {
		return fmt.Errorf("%d bytes, or other ones, of %d", count, len(content))
	}
	return nil
}

// atOnce runs that many concurrently and returns the first error.
func atOnce(count int, do func() error) error {
	errs := make([]error, count)
	var all sync.WaitGroup
	for i := range errs {
		all.Add(1)
		go func(err *error) {
			defer all.Done()
			*err = do()
		}(&errs[i])
	}
	all.Wait()
	return firstError(errs...)
}

func (r run) identify() error {
	return r.with(protocolIdentify, func(s *stream) error {
		message, err := readIdentify(s)
		if err != nil {
			return err
		}
		listed := strings.Join(message.protocols, "\n") + "\n"
		for _, protocol := range servedProtocols {
			// A remote need not serve `keep`, for which it would have to hold substreams.
			if protocol != protocolKeep && !strings.Contains(listed, protocol+"\n") {
				return fmt.Errorf("%s is not listed", protocol)
			}
		}
		if !strings.HasPrefix(message.agent, r.command.agent) {
			return fmt.Errorf("the agent is %q, not %s...", message.agent, r.command.agent)
		}
		return finish(s)
	})
}

func (r run) ping() error {
	for i := 0; i < pings; i++ {
		err := r.with(protocolPing, func(s *stream) error {
			sent, got := bytes.Repeat([]byte{byte(i)}, pingBytes), make([]byte, pingBytes)
			if err := writeAll(s, sent); err != nil {
				return err
			}
			if _, err := io.ReadFull(s, got); err != nil {
				return err
			}
			if !bytes.Equal(sent, got) {
				return errors.New("other bytes came back")
			}
			return finishAfter(s, firstError(s.closeWrite(), readPattern(s, 0)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func twoUint64(first, second uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, first), second)
}

func (r run) bulk() error {
	return atOnce(bulkStreams, func() error {
		return r.with(protocolBench, func(s *stream) error {
			return exchange(s,
				func() error {
					if err := writeAll(s, twoUint64(bulkBytes, bulkBytes)); err != nil {
						return err
					}
					return writePattern(s, bulkBytes)
				},
				func() error { return readPattern(s, bulkBytes) })
		})
	})
}

func (r run) sequential(count int) error {
	for i := 0; i < count; i++ {
		if err := r.echo(10 + i); err != nil {
			return fmt.Errorf("substream %d: %w", i, err)
		}
	}
	return nil
}

func (r run) bursts() error {
	for i := 0; i < r.command.rounds; i++ {
		err := atOnce(burstStreams, func() error { return r.echo(burstBytes) })
		if err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	return nil
}

func (r run) halfCloseLocal() error {
	return r.with(protocolHalfClose, func(s *stream) error {
		if err := firstError(writePattern(s, 1000), s.closeWrite()); err != nil {
			return err
		}
		return finishAfter(s, readPattern(s, halfCloseBytes))
	})
}

// ask opens a protocol without input and returns its answer.
func (r run) ask(protocol string, length int) ([]byte, error) {
	var answer []byte
	err := r.with(protocol, func(s *stream) error {
		err := exchange(s, func() error { return nil }, func() error {
			var err error
			answer, err = io.ReadAll(s)
			return err
		})
		if err == nil && len(answer) != length {
			err = fmt.Errorf("an answer of %d bytes, not %d", len(answer), length)
		}
		return err
	})
	return answer, err
}

func (r run) halfCloseRemote() error {
	err := r.with(protocolHalfCloseRemote, func(s *stream) error {
		if err := readPattern(s, halfCloseBytes); err != nil {
			return err
		}
		return finishAfter(s, writePattern(s, halfCloseBytes))
	})
	if err != nil {
		return err
	}
	answer, err := r.ask(protocolHalfCloseResult, 8)
	if err != nil {
		return err
	}
	if count := binary.BigEndian.Uint64(answer); count != halfCloseBytes {
		return fmt.Errorf("%d bytes came to the responder, not %d", count, halfCloseBytes)
	}
	return nil
}

func (r run) resetLocal() error {
	err := r.with(protocolResetMe, func(s *stream) error {
		if err := writePattern(s, resetMeBytes); err != nil {
			return err
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			return err
		}
		s.reset(codeResetMe)
		return nil
	})
	if err != nil {
		return err
	}
	answer, err := r.ask(protocolResetResult, 1)
	if err == nil && answer[0] != 1 {
		err = errors.New("the responder saw no reset")
	}
	return err
}

func (r run) resetRemote() error {
	return r.with(protocolResetYou, func(s *stream) error {
		if err := writeAll(s, []byte{0}); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, s)
		var reset *resetError
		if !errors.As(err, &reset) || !reset.remote || reset.closed || reset.code != codeResetYou {
			return fmt.Errorf("expected a reset with code %d, saw: %v", codeResetYou, err)
		}
		s.reset(0)
		return nil
	})
}

// besideNeighbours runs work while other substreams echo, none of which may be delayed by it.
func (r run) besideNeighbours(work func() error) error {
	worked := make(chan error, 1)
	go func() { worked <- work() }()
	began := time.Now()
	for i := 0; i < neighbours; i++ {
		echoBegan := time.Now()
		err := r.echo(neighbourBytes)
		if took := time.Since(echoBegan); err == nil && took > neighbourLimit {
			err = fmt.Errorf("it took %v", took)
		}
		if err != nil {
			return firstError(fmt.Errorf("neighbour %d: %w", i, err), <-worked)
		}
		// Distributed over the time of the stall.
		time.Sleep(time.Until(began.Add(time.Duration(i+1) * stallTime / neighbours)))
	}
	return <-worked
}

// stallLocal pauses before it reads what the remote sends.
func (r run) stallLocal() error {
	return r.besideNeighbours(func() error {
		return r.with(protocolBench, func(s *stream) error {
			if err := firstError(writeAll(s, twoUint64(0, stallBytes)), s.closeWrite()); err != nil {
				return err
			}
			time.Sleep(stallTime)
			return finishAfter(s, readPattern(s, stallBytes))
		})
	})
}

// stallRemote makes the remote pause its reading.
func (r run) stallRemote() error {
	return r.besideNeighbours(func() error {
		return r.with(protocolStall, func(s *stream) error {
			if err := writeAll(s, twoUint64(stallBytes, stallHoldMillis)); err != nil {
				return err
			}
			var answer [1]byte
			if _, err := io.ReadFull(s, answer[:]); err != nil || answer[0] != stalled {
				return fmt.Errorf("it did not fall silent: %q, %v", answer, err)
			}
			if err := firstError(writePattern(s, stallBytes), s.closeWrite()); err != nil {
				return err
			}
			count, err := readUint64(s)
			if err == nil && count != stallBytes {
				err = fmt.Errorf("%d of %d bytes came", count, stallBytes)
			}
			if err != nil {
				return err
			}
			return finishAfter(s, readPattern(s, 0))
		})
	})
}

// busy keeps traffic going all the time, so that ICE sends no checks.
func (r run) busy() error {
	for began := time.Now(); time.Since(began) < busyTime; time.Sleep(busyPause) {
		if err := r.echo(neighbourBytes); err != nil {
			return fmt.Errorf("after %v: %w", time.Since(began), err)
		}
	}
	return nil
}

// serve answers the substreams that the listener opens, until the connection ends.
func (r run) serve() error {
	began := time.Now()
	<-r.conn.ended
	line := caseLine{
		Case:         "serve",
		OK:           true,
		Milliseconds: milliseconds(time.Since(began)),
		End:          r.conn.endedBy().Error(),
	}
	r.report.line(line, false)
	return errReportedItself
}

// close checks that no substream is still in use, and closes the connection.
func (r run) close() error {
	for giveUp := time.Now().Add(leftWait); r.conn.inUse() > 0; {
		if time.Now().After(giveUp) {
			return fmt.Errorf("%d substreams are left", r.conn.inUse())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := r.conn.endedBy(); err != nil {
		return fmt.Errorf("the connection has ended: %w", err)
	}
	r.conn.close()
	return nil
}
