package postgresdoor

import "sync"

const (
	bufferSmall = 1 << 10
	bufferLarge = 32 << 10
)

var buffers = sync.Pool{New: func() any { return new([bufferLarge]byte) }}

// A buffer is small while little comes at a time: most sessions are idle for most of the time, and a thousand of them
// cost little. One that was filled to the brim is replaced by a large one.
type buffer struct {
	small [bufferSmall]byte
	large *[bufferLarge]byte
}

func (b *buffer) bytes() []byte {
	if b.large != nil {
		return b.large[:]
	}
	return b.small[:]
}

// fit chooses the size for the next read after one of n bytes.
func (b *buffer) fit(n int) {
	switch {
	case b.large == nil && n == bufferSmall:
		b.large = buffers.Get().(*[bufferLarge]byte)
	case b.large != nil && n <= bufferSmall:
		b.free()
	}
}

func (b *buffer) free() {
	if b.large != nil {
		buffers.Put(b.large)
		b.large = nil
	}
}
