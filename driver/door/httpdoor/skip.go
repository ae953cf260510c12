package httpdoor

import "encoding/binary"

const (
	gram      = 3  // bytes at the end of a window that are looked at
	maxWindow = 48 // more would move the window farther at a time, but fill the table
	tableBits = 12
)

// Skips says which bytes of a text begin no form, without looking at most of them: a window as long as the shortest
// form moves over the text, as far at a time as the bytes at its end allow (Wu and Manber, A fast algorithm for
// multi-pattern searching, 1994).
type skips struct {
	window int
	far    *[1 << tableBits]uint8 // by hash: how far the window can move if it ends with these bytes
}

func newSkips(forms []string) skips {
	s := skips{window: maxWindow, far: new([1 << tableBits]uint8)}
	for _, form := range forms {
		s.window = min(s.window, len(form))
	}
	for h := range s.far {
		s.far[h] = uint8(s.window - gram + 1)
	}
	for _, form := range forms {
		for end := gram; end <= s.window; end++ {
			// The first gram has no byte before it to load with: hash looks at three of four.
			h := hash([]byte("\x00" + form[:end]))
			s.far[h] = min(s.far[h], uint8(s.window-end))
		}
	}
	return s
}

// hash returns the place in the table for the last bytes of text, of which there are more than gram.
func hash(text []byte) uint32 {
	last := binary.LittleEndian.Uint32(text[len(text)-gram-1:]) >> 8
	return last * 0x9e3779b1 >> (32 - tableBits)
}

// skip returns a byte from i on. No form begins between, and none is whole in text after it if it does not begin there.
func (s *skips) skip(text []byte, i int) int {
	far, farthest := s.far, s.window-gram+1
	end := i + s.window
	for end <= len(text) {
		switch n := int(far[hash(text[:end])]); n {
		case farthest:
			end += farthest // not n: the processor need not wait for the table to look at the next place
		case 0:
			return end - s.window
		default:
			end += n
		}
	}
	return end - s.window
}
