package httpdoor

import (
	"io"
	"slices"
	"time"
)

// A matcher finds the forms of secrets in a stream of bytes by the automaton of Aho and Corasick (Efficient string
// matching, 1975), which looks at each byte once. Most bytes it need not look at: skips has where a form may begin. It
// does not change once it is made.
type matcher struct {
	nodes []node // nodes[0] is the root
	root  [256]int32
	skips
}

// A node stands for the beginning of a form. Its children are a list, which is short: most nodes have one.
type node struct {
	child, sibling int32 // 0: none
	fail           int32 // the longest other beginning that this one ends with
	depth          int32 // how many bytes the beginning has
	match          int32 // length of the longest form that this one ends with; 0: none
	b              byte  // the last byte of the beginning
}

// newMatcher returns a matcher for all forms of the secrets, or nil if there is nothing to look for.
func newMatcher(secrets []string) *matcher {
	m := &matcher{nodes: make([]node, 1)}
	var forms []string
	for _, secret := range secrets {
		for _, form := range formsOf(secret) {
			if len(form) >= shortest {
				m.add(form)
				forms = append(forms, form)
			}
		}
	}
	if len(forms) == 0 {
		return nil
	}
	m.link()
	m.skips = newSkips(forms)
	m.nodes = slices.Clip(m.nodes)
	return m
}

func (m *matcher) add(form string) {
	at := int32(0)
	for _, b := range []byte(form) {
		next := m.child(at, b)
		if next == 0 {
			next = int32(len(m.nodes))
			m.nodes = append(m.nodes, node{b: b, depth: m.nodes[at].depth + 1, sibling: m.nodes[at].child})
			m.nodes[at].child = next
		}
		at = next
	}
	m.nodes[at].match = int32(len(form))
}

func (m *matcher) child(of int32, b byte) int32 {
	at := m.nodes[of].child
	for at != 0 && m.nodes[at].b != b {
		at = m.nodes[at].sibling
	}
	return at
}

// next returns the first byte from i on that may begin a form, or the end of text.
func (m *matcher) next(text []byte, i int) int {
	for ; i < len(text); i++ {
		if i = m.skip(text, i); m.root[text[i]] != 0 {
			break
		}
	}
	return i
}

// link finds where to go on when a beginning is not continued, level by level.
func (m *matcher) link() {
	level := []int32{0}
	for len(level) > 0 {
		var next []int32
		for _, of := range level {
			for at := m.nodes[of].child; at != 0; at = m.nodes[at].sibling {
				n := &m.nodes[at]
				if of != 0 {
					n.fail = m.step(m.nodes[of].fail, n.b)
				} else {
					m.root[n.b] = at
				}
				n.match = max(n.match, m.nodes[n.fail].match)
				next = append(next, at)
			}
		}
		level = next
	}
}

// step returns the node for the longest beginning that the bytes so far end with, and b.
func (m *matcher) step(at int32, b byte) int32 {
	for at != 0 {
		if next := m.child(at, b); next != 0 {
			return next
		}
		at = m.nodes[at].fail
	}
	return m.root[b]
}

// mask makes the forms in text unreadable from the byte at new on. What is before it was looked at already, and led to
// the node at. It returns the node for the end, whose depth says how many bytes at the end may begin more.
func (m *matcher) mask(text []byte, from int, at int32) int32 {
	for i := from; i < len(text); i++ {
		if at == 0 { // most bytes begin nothing
			if i = m.next(text, i); i == len(text) {
				return 0
			}
		}
		at = m.step(at, text[i])
		for j := i; j > i-int(m.nodes[at].match) && j >= 0; j-- {
			text[j] = '*'
		}
	}
	return at
}

// masked returns a text in which no form can be read. A nil matcher changes nothing.
func (m *matcher) masked(text string) string {
	if m == nil {
		return text
	}
	b := []byte(text)
	m.mask(b, 0, 0)
	return string(b)
}

// pause is how long a scrubber waits for what follows the beginning of a form before it lets a short one go: a message
// that ends with the first letter of a secret must not wait for the next message.
const pause = 20 * time.Millisecond

// A scrubber reads what src has, without the secrets. It holds back only what may be the beginning of one. A beginning
// that is shorter than the shortest secret is let go if nothing follows it for a while; if the secret does follow
// later, its rest is made unreadable.
type scrubber struct {
	src io.Reader
	m   *matcher

	at    int32  // node for all that src has given
	buf   []byte // what was read and not yet given: most often nothing, since src reads into the reader's own
	ready int    // buf[:ready] can be given, and the rest is held back
	err   error  // of src
	late  chan chunk
}

// A chunk is what a reading in the background gave.
type chunk struct {
	data []byte
	err  error
}

func newScrubber(src io.Reader, m *matcher) *scrubber { return &scrubber{src: src, m: m} }

func (s *scrubber) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.ready == 0 {
		switch {
		case s.err != nil:
			return 0, s.err
		case len(s.buf) > 0 || s.late != nil:
			s.follow()
		default:
			n, err := s.src.Read(p)
			ready := s.look(p[:n], 0, err)
			s.buf = append(s.buf, p[ready:n]...)
			if ready > 0 {
				return ready, nil
			}
		}
	}
	n := copy(p, s.buf[:s.ready])
	s.buf, s.ready = s.buf[n:], s.ready-n
	if len(s.buf) == 0 {
		s.buf = nil
	}
	return n, nil
}

// look makes the secrets in text unreadable, which is new from a byte on, and returns how much of it can be given.
func (s *scrubber) look(text []byte, from int, err error) (ready int) {
	s.err = err
	s.at = s.m.mask(text, from, s.at)
	ready = len(text) - min(len(text), int(s.m.nodes[s.at].depth))
	for ready < len(text) && (text[ready] == '*' || err != nil) {
		ready++ // there is nothing to hide any more, or nothing follows
	}
	return ready
}

// follow waits for what follows the bytes that are held back, or lets them go.
func (s *scrubber) follow() {
	got, ok := s.wait()
	if !ok {
		s.ready = len(s.buf)
		return
	}
	held := len(s.buf)
	s.buf = append(s.buf, got.data...)
	s.ready = s.look(s.buf, held, got.err)
}

// wait reads in the background, and reports false if that takes so long that what is held back is to be let go.
func (s *scrubber) wait() (chunk, bool) {
	if s.late == nil {
		late := make(chan chunk, 1)
		go func() {
			data := make([]byte, 4096)
			n, err := s.src.Read(data)
			late <- chunk{data[:n], err}
		}()
		s.late = late
	}
	var paused <-chan time.Time
	if held := len(s.buf); held > 0 && held < shortest {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		paused = timer.C
	}
	select {
	case got := <-s.late:
		s.late = nil
		return got, true
	case <-paused:
		return chunk{}, false
	}
}
