package main

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/pion/stun"
)

const (
	// packetQueue is the number of datagrams that wait for one connection; more are dropped.
	packetQueue = 128
	// newcomerQueue is the number of diallers that wait for the listener.
	newcomerQueue = 32
	maxDatagram   = 1500
)

// newcomer is a dialler whose first check has come.
type newcomer struct {
	from        *net.UDPAddr
	credentials credentials
}

// udpMux shares the listener's socket between connections: a datagram belongs to the connection
// that was named by the first check from its address. It implements ice.UDPMux.
type udpMux struct {
	socket    *net.UDPConn
	newcomers chan newcomer
	closed    chan struct{}

	mu      sync.Mutex
	byUfrag map[string]*muxedConn
	byPeer  map[string]*muxedConn
}

func newUDPMux(socket *net.UDPConn) *udpMux {
	mux := &udpMux{
		socket:    socket,
		newcomers: make(chan newcomer, newcomerQueue),
		closed:    make(chan struct{}),
		byUfrag:   map[string]*muxedConn{},
		byPeer:    map[string]*muxedConn{},
	}
	go mux.receive()
	return mux
}

func (m *udpMux) receive() {
	defer close(m.closed)
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := m.socket.ReadFromUDP(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Any other error concerns one datagram, for example one that nobody received.
		if err == nil {
			m.dispatch(append([]byte(nil), buffer[:n]...), from)
		}
	}
}

func (m *udpMux) dispatch(datagram []byte, from *net.UDPAddr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	conn, ok := m.byPeer[from.String()]
	if !ok {
		c, err := firstCheck(datagram)
		if err != nil {
			return
		}
		conn, ok = m.byUfrag[c.serverUfrag]
		if !ok {
			select {
			case m.newcomers <- newcomer{from, c}:
			default:
				return
			}
			conn = m.add(c.serverUfrag)
		}
		m.byPeer[from.String()] = conn
	}
	conn.push(packet{datagram, from})
}

// firstCheck returns the credentials of a Binding request.
func firstCheck(datagram []byte) (credentials, error) {
	if !stun.IsMessage(datagram) {
		return credentials{}, errors.New("not STUN")
	}
	message := &stun.Message{Raw: datagram}
	if err := message.Decode(); err != nil {
		return credentials{}, err
	}
	if message.Type != stun.BindingRequest {
		return credentials{}, errors.New("no Binding request")
	}
	username, err := message.Get(stun.AttrUsername)
	if err != nil {
		return credentials{}, err
	}
	return credentialsOf(string(username))
}

func (m *udpMux) add(ufrag string) *muxedConn {
	conn := &muxedConn{
		mux:     m,
		ufrag:   ufrag,
		packets: make(chan packet, packetQueue),
		closed:  make(chan struct{}),
	}
	m.byUfrag[ufrag] = conn
	return conn
}

// GetConn is called by the ICE agent of a connection with its own ufrag.
func (m *udpMux) GetConn(ufrag string, _ net.Addr) (net.PacketConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if conn, ok := m.byUfrag[ufrag]; ok {
		return conn, nil
	}
	return m.add(ufrag), nil
}

// RemoveConnByUfrag is called when the agent is closed.
func (m *udpMux) RemoveConnByUfrag(ufrag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	conn, ok := m.byUfrag[ufrag]
	if !ok {
		return
	}
	delete(m.byUfrag, ufrag)
	for peer, other := range m.byPeer {
		if other == conn {
			delete(m.byPeer, peer)
		}
	}
	close(conn.closed)
}

// GetListenAddresses returns the addresses for the agent's candidates.
func (m *udpMux) GetListenAddresses() []net.Addr {
	return []net.Addr{m.socket.LocalAddr()}
}

// Close ends the listener.
func (m *udpMux) Close() error {
	err := m.socket.Close()
	<-m.closed
	return err
}

type packet struct {
	content []byte
	from    net.Addr
}

// muxedConn is the view of one connection on the socket.
type muxedConn struct {
	mux     *udpMux
	ufrag   string
	packets chan packet
	closed  chan struct{}
}

func (c *muxedConn) push(p packet) {
	select {
	case c.packets <- p:
	default:
	}
}

func (c *muxedConn) ReadFrom(out []byte) (int, net.Addr, error) {
	select {
	case p := <-c.packets:
		return copy(out, p.content), p.from, nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *muxedConn) WriteTo(content []byte, to net.Addr) (int, error) {
	return c.mux.socket.WriteTo(content, to)
}

func (c *muxedConn) Close() error {
	c.mux.RemoveConnByUfrag(c.ufrag)
	return nil
}

func (c *muxedConn) LocalAddr() net.Addr { return c.mux.socket.LocalAddr() }

// The agent ends a read by closing.
func (c *muxedConn) SetDeadline(time.Time) error      { return nil }
func (c *muxedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *muxedConn) SetWriteDeadline(time.Time) error { return nil }
