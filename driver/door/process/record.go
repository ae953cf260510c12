package process

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/door"
)

// recordQueue is how many calls wait to be written. Those beyond are counted, not written.
const recordQueue = 4096

// A line of the record. Chain is the SHA-256 of the chain of the line before it and of this line without Chain, so that
// a line that is changed, taken away or put in between is seen (docs/doors.md). The first line of a process has none
// before it.
type line struct {
	*door.Call
	Lost  int64  `json:"lost,omitempty"` // calls that were not written before this line
	Chain string `json:"chain,omitempty"`
}

// A record writes down calls. It delays none of them: one goroutine writes.
type record struct {
	calls chan door.Call
	lost  atomic.Int64

	mu    sync.Mutex
	fd    int // -1: nothing is recorded
	chain [sha256.Size]byte
}

func newRecord() *record { return &record{calls: make(chan door.Call, recordQueue), fd: -1} }

// to makes fd, which the record owns, the file of the lines from now on.
func (r *record) to(fd int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd >= 0 {
		unix.Close(r.fd)
	}
	r.fd = fd
}

// call writes down a call, later.
func (r *record) call(c door.Call) {
	select {
	case r.calls <- c:
	default:
		r.lost.Add(1)
	}
}

// write writes down the calls until the channel is closed.
func (r *record) write() {
	for c := range r.calls {
		lost := r.lost.Swap(0)
		if err := r.line(line{Call: &c, Lost: lost}); err != nil {
			r.lost.Add(lost + 1)
			if lost == 0 { // said once while it lasts
				fmt.Fprintln(os.Stderr, "write record:", err)
			}
		}
	}
}

// line writes one line, whole or not at all: what is left of half a line is ended.
func (r *record) line(l line) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return nil
	}
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	sum := chain(r.chain, body)
	l.Chain = hex.EncodeToString(sum[:])
	if body, err = json.Marshal(l); err != nil {
		return err
	}
	body = append(body, '\n')
	n, err := unix.Write(r.fd, body)
	if err != nil {
		return err
	}
	if n < len(body) {
		_, _ = unix.Write(r.fd, []byte("\n"))
		return unix.ENOSPC
	}
	r.chain = sum
	return nil
}

// chain is the hash of a line that comes after the one with the hash before.
func chain(before [sha256.Size]byte, body []byte) [sha256.Size]byte {
	return sha256.Sum256(append(before[:], body...))
}

// refusedPeer is the line of a peer that may not use a door.
func refusedPeer(id string, peer door.Peer, why error) door.Call {
	return door.Call{Time: time.Now().UTC(), Door: id, PID: peer.PID, UID: &peer.UID, Refused: why.Error()}
}
