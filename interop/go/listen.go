package main

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// shutdownWait is the time for connections that their diallers have just closed.
const shutdownWait = 3 * time.Second

// listen serves every dialler until stdin ends.
func listen(command listenCommand, report *report) error {
	transport, err := newTransport(command.iceTimeouts)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", command.address.socket)
	if err != nil {
		return err
	}
	mux := newUDPMux(socket)
	report.listening(address{
		socket:          socket.LocalAddr().(*net.UDPAddr),
		certificateHash: transport.fingerprint,
		peerID:          transport.identity.publicKey().peerID(),
	}.String(), os.Getpid())

	stdinEnded := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stdinEnded)
	}()
	var serving sync.WaitGroup
	for {
		select {
		case n := <-mux.newcomers:
			serving.Add(1)
			go func() {
				defer serving.Done()
				conn, err := transport.answer(mux, n.from, n.credentials)
				if err != nil {
					report.connectionFailed(n.from.String(), err)
					return
				}
				serve(conn, transport.identity, report)
				if err := conn.endedBy(); err != errClosedByPeer {
					report.connectionFailed(conn.remote, err)
				}
			}()
		case <-stdinEnded:
			// Diallers that are done have closed their connections: this waits for reports only.
			if !waitFor(&serving, shutdownWait) {
				err = errors.New("connections were left open")
			}
			return firstError(err, mux.Close())
		}
	}
}

func waitFor(group *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}
