package postgresdoor

import (
	"encoding/binary"
	"errors"
)

var errFrame = errors.New("read frame: its length is less than that of its header")

// header is a frame's: its kind, and a length that counts itself and the body.
// https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-MESSAGE-CONCEPTS
const header = 5

// A walker follows the frames of one direction. It keeps no body.
type walker struct {
	head  [header]byte
	have  int    // bytes of head
	left  uint32 // bytes of the body that are still to come
	first byte   // of the body
	begun bool   // first is set
}

// between reports whether a frame has ended, and no other has begun.
func (w *walker) between() bool { return w.have == 0 }

// next walks to the end of a frame. It returns the frame's kind and what follows. Without such an end in p, the kind is
// zero and nothing follows.
func (w *walker) next(p []byte) (kind byte, rest []byte, err error) {
	if w.have < header {
		n := copy(w.head[w.have:], p)
		w.have, p = w.have+n, p[n:]
		if w.have < header {
			return 0, nil, nil
		}
		length := binary.BigEndian.Uint32(w.head[1:])
		if length < header-1 || length > 1<<31-1 {
			return 0, nil, errFrame
		}
		w.left, w.begun = length-(header-1), false
	}
	if !w.begun && w.left > 0 && len(p) > 0 {
		w.first, w.begun = p[0], true
	}
	n := min(uint32(len(p)), w.left)
	w.left, p = w.left-n, p[n:]
	if w.left > 0 {
		return 0, nil, nil
	}
	w.have = 0
	return w.head[0], p, nil
}

// Kinds of frames that decide whether a session is idle. Some mean one thing from a client, and another from a server.
const (
	query        = 'Q'
	functionCall = 'F'
	syncPoint    = 'S'
	terminate    = 'X'
	copyData     = 'd'
	copyDone     = 'c'
	copyFail     = 'f'

	ready  = 'Z' // its body is the state of the transaction: I, T or E
	copyIn = 'G'
	failed = 'E'
)

// frames is what is known of a session by the frames of both directions.
type frames struct {
	client, server walker

	due        int  // ReadyForQuery frames that the server owes the client
	open       bool // the client has sent what a Sync has to follow
	asked      byte // the kind of frame for which the last of those is due
	state      byte // of the transaction
	terminated bool // the client has said goodbye
	fatal      bool // the server's last frame is an error
}

// fromClient walks through what is about to be sent to the server.
func (f *frames) fromClient(p []byte) error {
	for len(p) > 0 {
		kind, rest, err := f.client.next(p)
		if err != nil {
			return err
		}
		switch p = rest; kind {
		case 0, copyData, copyDone, copyFail:
		case query, functionCall, syncPoint:
			f.due, f.open, f.asked = f.due+1, false, kind
		case terminate:
			f.terminated = true
		default:
			f.open = true
		}
	}
	return nil
}

// fromServer walks through what is about to be sent to the client.
func (f *frames) fromServer(p []byte) error {
	for len(p) > 0 {
		kind, rest, err := f.server.next(p)
		if err != nil {
			return err
		}
		if p = rest; kind == 0 {
			continue // at the end of p, or after a frame of that kind, which no server sends
		}
		switch f.fatal = kind == failed; kind {
		case ready:
			f.state = f.server.first
			if f.due == 0 {
				f.open = false // the Sync after a copy came before the copy was known of
			}
			f.due = max(0, f.due-1)
		case copyIn:
			// The server ignores each Sync until the copy has ended: one after that is due.
			// https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY
			if f.asked == syncPoint {
				f.due, f.open = 0, true
			}
		}
	}
	return nil
}

// waits reports whether the server waits for the client.
func (f *frames) waits() bool { return f.due == 0 && f.server.between() }

// idle reports whether the session is between two transactions, and nothing is under way.
func (f *frames) idle() bool {
	return f.waits() && f.state == 'I' && !f.open && f.client.between()
}
