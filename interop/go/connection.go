package main

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/pion/datachannel"
	"github.com/pion/webrtc"
)

const (
	// noiseChannel is pre-negotiated by the specification.
	noiseChannel = 0
	// sentinelChannel is a number that is never used: neither side announces it to the other.
	sentinelChannel = 65534
	// backlog is the number of channels that may wait for the application; more are reset.
	backlog = 256
)

var (
	errClosedHere   = errors.New("closed here")
	errClosedByPeer = errors.New("closed by the peer")
	errSilent       = errors.New("the peer is silent")
)

// connection is an authenticated connection. As in go-libp2p, a number is in its table until the
// application closes the substream, and a channel that the peer opens on such a number ends the
// whole connection.
type connection struct {
	peer *webrtc.PeerConnection
	// The remote's peer id, once Noise is done.
	remote  string
	noise   *webrtc.DataChannel
	inbound chan *webrtc.DataChannel

	mu      sync.Mutex
	streams map[uint16]*stream
	next    int
	cause   error

	ended chan struct{}
}

// newConnection prepares everything that the peer may use as soon as the transport is up. The
// dialler's numbers are even.
func newConnection(
	api *webrtc.API, config webrtc.Configuration, dialled bool,
) (*connection, error) {
	peer, err := api.NewPeerConnection(config)
	if err != nil {
		return nil, err
	}
	c := &connection{
		peer:    peer,
		inbound: make(chan *webrtc.DataChannel, backlog),
		streams: map[uint16]*stream{},
		next:    1,
		ended:   make(chan struct{}),
	}
	if dialled {
		c.next = 2
	}
	c.noise, err = negotiated(peer, noiseChannel)
	if err != nil {
		_ = peer.Close()
		return nil, err
	}
	sentinel, err := negotiated(peer, sentinelChannel)
	if err != nil {
		_ = peer.Close()
		return nil, err
	}
	sentinel.OnOpen(func() { c.watch(sentinel) })
	peer.OnDataChannel(func(channel *webrtc.DataChannel) {
		channel.OnOpen(func() { c.offer(channel) })
	})
	peer.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		if state == webrtc.PeerConnectionStateFailed {
			c.closeWith(errSilent)
		}
	})
	return c, nil
}

func negotiated(peer *webrtc.PeerConnection, number uint16) (*webrtc.DataChannel, error) {
	yes := true
	return peer.CreateDataChannel("", &webrtc.DataChannelInit{Negotiated: &yes, ID: &number})
}

// watch ends the connection with its association: this version of pion reports that end to the
// readers of channels only, and the peer can close the other channels at any time.
func (c *connection) watch(sentinel *webrtc.DataChannel) {
	channel, err := sentinel.Detach()
	if err == nil {
		_, err = channel.Read(make([]byte, 1))
	}
	if err == nil {
		err = fmt.Errorf("the peer sent on channel %d", sentinelChannel)
	} else {
		err = errClosedByPeer
	}
	c.closeWith(err)
}

func (c *connection) offer(channel *webrtc.DataChannel) {
	select {
	case c.inbound <- channel:
	default:
		if detached, err := channel.Detach(); err == nil {
			_ = writeFrame(detached, frame{hasFlag: true, flag: flagReset})
			_ = detached.Close()
		}
	}
}

// accept returns the next substream that the peer opened.
func (c *connection) accept() (*stream, error) {
	select {
	case <-c.ended:
		return nil, c.endedBy()
	case channel := <-c.inbound:
		s, err := c.add(channel)
		if err != nil {
			c.closeWith(err)
		}
		return s, err
	}
}

// open opens a substream on the next number: numbers are never used twice.
func (c *connection) open() (*stream, error) {
	c.mu.Lock()
	cause, number := c.cause, c.next
	c.next += 2
	c.mu.Unlock()
	if cause != nil {
		return nil, cause
	}
	if number > math.MaxUint16 {
		return nil, errors.New("no stream number is left")
	}
	id := uint16(number)
	channel, err := c.peer.CreateDataChannel("", &webrtc.DataChannelInit{ID: &id})
	if err != nil {
		return nil, err
	}
	opened := make(chan struct{})
	channel.OnOpen(func() { close(opened) })
	select {
	case <-opened:
		return c.add(channel)
	case <-c.ended:
		return nil, c.endedBy()
	}
}

func (c *connection) add(channel *webrtc.DataChannel) (*stream, error) {
	number := *channel.ID()
	detached, err := channel.Detach()
	if err != nil {
		return nil, err
	}
	s := newStream(number, detached.(*datachannel.DataChannel), func() { c.forget(number) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return nil, c.cause
	}
	if _, ok := c.streams[number]; ok {
		return nil, fmt.Errorf("stream number %d is still in use", number)
	}
	c.streams[number] = s
	return s, nil
}

func (c *connection) forget(number uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, number)
}

// open substreams of both sides.
func (c *connection) inUse() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

func (c *connection) endedBy() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

func (c *connection) close() {
	c.closeWith(errClosedHere)
}

func (c *connection) closeWith(cause error) {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return
	}
	c.cause = cause
	streams := c.streams
	c.streams = map[uint16]*stream{}
	c.mu.Unlock()
	close(c.ended)
	// Its errors are about channels that the peer has closed before.
	_ = c.peer.Close()
	for _, s := range streams {
		s.end(cause)
	}
}
