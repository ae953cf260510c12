package httpdoor

import "sync"

const bufferSize = 32 << 10 // of a body that is copied

// A pool of buffers is what bodies are copied with.
type pool struct{ sync.Pool }

var buffers = &pool{sync.Pool{New: func() any { return new([bufferSize]byte) }}}

// Get implements httputil.BufferPool.
func (p *pool) Get() []byte { return p.Pool.Get().(*[bufferSize]byte)[:] }

// Put implements httputil.BufferPool.
func (p *pool) Put(b []byte) {
	if cap(b) >= bufferSize {
		p.Pool.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}
