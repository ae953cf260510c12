package door

import "net"

// A Peer is the process at the other end of a door's socket, in the node's own namespaces.
type Peer struct{ PID, UID int }

// PeerOf returns who has made a connection that a door's listener has accepted. It is not known of one over TCP.
func PeerOf(c net.Conn) (Peer, bool) {
	known, ok := c.(interface{ Peer() Peer })
	if !ok {
		return Peer{}, false
	}
	return known.Peer(), true
}
