package main

import (
	"encoding/json"
	"io"
	"sync"
	"time"
)

// report writes lines of JSON, from any goroutine, and remembers whether one was an error.
type report struct {
	mu    sync.Mutex
	out   *json.Encoder
	error bool
}

type caseLine struct {
	Case string `json:"case"`
	OK   bool   `json:"ok"`
	// Milliseconds of the case.
	Milliseconds *float64 `json:"ms,omitempty"`
	// For `connects`: those of the single dials.
	Median *float64 `json:"median_ms,omitempty"`
	Most   *float64 `json:"max_ms,omitempty"`
	// For `serve`: why the connection ended.
	End   string `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

func newReport(out io.Writer) *report {
	encoder := json.NewEncoder(out)
	// Addresses and errors are for people, and for tests that do not unescape.
	encoder.SetEscapeHTML(false)
	return &report{out: encoder}
}

func (r *report) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.error
}

func (r *report) line(value any, isError bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.error = r.error || isError
	// The reader of the lines may have exited, and then the error does not matter.
	_ = r.out.Encode(value)
}

func milliseconds(d time.Duration) *float64 {
	ms := float64(d.Microseconds()) / 1000
	return &ms
}

func (r *report) caseDone(name string, took time.Duration) {
	r.line(caseLine{Case: name, OK: true, Milliseconds: milliseconds(took)}, false)
}

func (r *report) caseFailed(name string, err error) {
	r.line(caseLine{Case: name, Error: err.Error()}, true)
}

func (r *report) listening(address string, pid int) {
	r.line(struct {
		Listen string `json:"listen"`
		PID    int    `json:"pid"`
	}{address, pid}, false)
}

// responderFailed reports a substream of the peer that violated its protocol.
func (r *report) responderFailed(protocol string, err error) {
	r.line(struct {
		Responder string `json:"responder"`
		Error     string `json:"error"`
	}{protocol, err.Error()}, true)
}

// connectionFailed reports a connection that failed, or was never established.
func (r *report) connectionFailed(remote string, err error) {
	r.line(struct {
		Connection string `json:"connection"`
		Error      string `json:"error"`
	}{remote, err.Error()}, true)
}
