package main

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"time"
)

// dial connects as often as requested, and runs the cases over the last connection.
func dial(command dialCommand, report *report) error {
	transport, err := newTransport(command.iceTimeouts)
	if err != nil {
		return err
	}
	deadline := time.AfterFunc(command.timeout, func() {
		report.caseFailed("deadline", fmt.Errorf("not done within %v", command.timeout))
		os.Exit(exitFailed)
	})
	defer deadline.Stop()

	conn, err := connect(transport, command, report)
	if err != nil {
		// The report has it.
		return nil
	}
	defer conn.close()
	served := make(chan struct{})
	go func() {
		serve(conn, transport.identity, report)
		close(served)
	}()
	runCases(conn, command, report)
	conn.close()
	<-served
	return nil
}

// connect makes all connections and returns the last one.
func connect(transport *transport, command dialCommand, report *report) (*connection, error) {
	var conn *connection
	times := make([]time.Duration, command.connects)
	for i := range times {
		if conn != nil {
			conn.close()
		}
		began := time.Now()
		var err error
		conn, err = transport.dial(command.address, command.version)
		if err != nil {
			report.caseFailed("connect", err)
			return nil, err
		}
		times[i] = time.Since(began)
		report.caseDone("connect", times[i])
	}
	if len(times) > 1 {
		sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
		report.line(caseLine{
			Case:   "connects",
			OK:     true,
			Median: milliseconds(times[len(times)/2]),
			Most:   milliseconds(times[len(times)-1]),
		}, false)
	}
	return conn, nil
}

// run is the context of a case.
type run struct {
	conn    *connection
	command dialCommand
	report  *report
}

func runCases(conn *connection, command dialCommand, report *report) {
	r := run{conn, command, report}
	for _, c := range command.cases {
		began := time.Now()
		err := c.run(r)
		switch {
		case errors.Is(err, errReportedItself):
		case err != nil:
			report.caseFailed(c.name, err)
		default:
			report.caseDone(c.name, time.Since(began))
		}
	}
}
