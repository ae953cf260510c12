package process

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// frameMost is how many bytes a message may have. The largest has a Spec with the certificates of authorities.
	frameMost = 1 << 20
	// filesMost is how many file descriptors may come with a message: the listeners of a door.
	filesMost = 4
	// queueMost is how many messages wait for an end that does not read.
	queueMost = 1 << 16
	// writeWithin is how long the other end may take to read a message.
	writeWithin = 10 * time.Second
)

var (
	errClosed = errors.New("the connection between the plugin and the doors process has ended")
	errFrame  = errors.New("the message is not one of ours")
)

// A link carries messages and file descriptors over a socket, both ways. A message with an ID is a request, which the
// other end answers with the same ID. Neither end trusts the other with more than the bounds above.
type link struct {
	conn *net.UnixConn
	done chan struct{} // closed when the link has ended

	mu      sync.Mutex
	queue   []frame
	wake    chan struct{}
	pending map[uint64]chan message
	next    uint64
	ended   bool
}

// A frame is a message on its way out. It owns its file descriptors.
type frame struct {
	message message
	files   []int
}

// newLink makes a link of a connection. It works when run is called.
func newLink(conn *net.UnixConn) *link {
	return &link{conn: conn, done: make(chan struct{}), wake: make(chan struct{}, 1),
		pending: make(map[uint64]chan message)}
}

// run hands each message that is no answer to handle, until the link ends or handle returns an error. handle owns the
// file descriptors.
func (l *link) run(handle func(message, []int) error) error {
	defer l.close()
	go l.write()
	for {
		m, files, err := l.receive()
		if err != nil {
			return err
		}
		if m.Answer {
			closeAll(files)
			l.resolve(m)
			continue
		}
		if err := handle(m, files); err != nil {
			return err
		}
	}
}

// close ends the link. Requests that wait for an answer get errClosed.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	for _, f := range l.queue {
		closeAll(f.files)
	}
	l.queue = nil
	close(l.done)
	if l.conn != nil { // there is none where connecting has failed
		_ = l.conn.Close()
	}
}

// send puts a message into the queue with copies of the file descriptors, and never waits.
func (l *link) send(m message, files ...int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enqueue(m, files)
}

func (l *link) enqueue(m message, files []int) {
	if l.ended {
		return
	}
	owned, err := duplicate(files)
	if err != nil || len(l.queue) == queueMost {
		closeAll(owned)
		go l.close() // what is not sent must not be taken for sent
		return
	}
	l.queue = append(l.queue, frame{message: m, files: owned})
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ask sends a request and returns the answer. An error that the other end answered with is a *refusal.
func (l *link) ask(ctx context.Context, m message, files ...int) (message, error) {
	return l.request(m, files...)(ctx)
}

// request puts a request into the queue, and returns what waits for the answer. It must be called once.
func (l *link) request(m message, files ...int) func(context.Context) (message, error) {
	answer := make(chan message, 1)
	l.mu.Lock()
	l.next++
	m.ID = l.next
	l.pending[m.ID] = answer
	l.enqueue(m, files)
	l.mu.Unlock()
	return func(ctx context.Context) (message, error) {
		defer func() {
			l.mu.Lock()
			delete(l.pending, m.ID)
			l.mu.Unlock()
		}()
		select {
		case got := <-answer:
			if got.Error != "" {
				return got, &refusal{got.Error}
			}
			return got, nil
		case <-l.done:
			return message{}, errClosed
		case <-ctx.Done():
			return message{}, ctx.Err()
		}
	}
}

// A refusal is what the other end says of a request.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// answer answers a request.
func (l *link) answer(request uint64, m message, err error) {
	m.ID, m.Answer = request, true
	if err != nil {
		m.Error = err.Error()
	}
	l.send(m)
}

// resolve gives an answer to whom waits for it. Nobody does where the time was over, or where nothing was asked.
func (l *link) resolve(m message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if waiting, ok := l.pending[m.ID]; ok {
		delete(l.pending, m.ID)
		waiting <- m
	}
}

// write sends what is in the queue, until the link ends.
func (l *link) write() {
	defer l.close()
	for {
		l.mu.Lock()
		frames := l.queue
		l.queue = nil
		l.mu.Unlock()
		for i, f := range frames {
			err := l.transmit(f)
			closeAll(f.files)
			if err != nil {
				for _, rest := range frames[i+1:] {
					closeAll(rest.files)
				}
				return
			}
		}
		select {
		case <-l.wake:
		case <-l.done:
			return
		}
	}
}

// transmit writes a frame: the length of its body and the number of its files, with which these go, and the body.
func (l *link) transmit(f frame) error {
	body, err := json.Marshal(f.message)
	if err != nil {
		return err
	}
	defer clear(body) // it may have a credential
	if len(body) > frameMost {
		return fmt.Errorf("%w: %d bytes", errFrame, len(body))
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	header = binary.BigEndian.AppendUint32(header, uint32(len(f.files)))
	var rights []byte
	if len(f.files) > 0 {
		rights = unix.UnixRights(f.files...)
	}
	n, _, err := l.conn.WriteMsgUnix(header, rights, nil)
	if err == nil {
		_, err = l.conn.Write(append(header[n:], body...))
	}
	return err
}

// receive reads a frame. The caller owns the files.
func (l *link) receive() (m message, files []int, err error) {
	var header [8]byte
	files, err = l.read(header[:], nil)
	if err != nil {
		closeAll(files)
		return m, nil, err
	}
	size, count := binary.BigEndian.Uint32(header[:]), binary.BigEndian.Uint32(header[4:])
	if size > frameMost || count > filesMost {
		closeAll(files)
		return m, nil, fmt.Errorf("%w: %d bytes, %d files", errFrame, size, count)
	}
	body := make([]byte, size)
	defer clear(body)
	files, err = l.read(body, files)
	if err == nil && len(files) != int(count) {
		err = fmt.Errorf("%w: %d files where it says %d", errFrame, len(files), count)
	}
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		closeAll(files)
		return m, nil, err
	}
	return m, files, nil
}

// read fills p, and adds the files that come with it. It reads no byte of the next frame, and so none of its files.
func (l *link) read(p []byte, files []int) ([]int, error) {
	oob := make([]byte, unix.CmsgSpace(4*filesMost))
	for len(p) > 0 {
		n, m, flags, _, err := l.conn.ReadMsgUnix(p, oob)
		got, parsed := rights(oob[:m])
		files = append(files, got...)
		switch {
		case err != nil:
			return files, err
		case n == 0:
			return files, io.ErrUnexpectedEOF
		case parsed != nil || flags&unix.MSG_CTRUNC != 0 || len(files) > filesMost:
			return files, fmt.Errorf("%w: its files", errFrame)
		}
		p = p[n:]
	}
	return files, nil
}

// rights returns the files of a control message.
func rights(oob []byte) (files []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		got, failed := unix.ParseUnixRights(&m)
		err = errors.Join(err, failed)
		files = append(files, got...)
	}
	return files, err
}

func duplicate(files []int) (copies []int, err error) {
	for _, fd := range files {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return copies, err
		}
		copies = append(copies, c)
	}
	return copies, nil
}

func closeAll(files []int) {
	for _, fd := range files {
		unix.Close(fd)
	}
}
