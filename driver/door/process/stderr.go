package process

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

const (
	lineMost  = 4 << 10
	linesEach = time.Second // one line each, after the first hundred
)

// memoryDump is a line of what Go's runtime prints of a thread's stack when it dies in C: bytes that may be a secret's.
var memoryDump = regexp.MustCompile(`^[0-9a-f]{16}: `)

// A stderr logs what the process says. end is the end that the process writes to.
type stderr struct {
	end, reader *os.File
	closed      chan struct{} // closed when all was read

	mu    sync.Mutex
	first string
}

func newStderr(logger hclog.Logger) (*stderr, error) {
	reader, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &stderr{end: end, reader: reader, closed: make(chan struct{})}
	go s.read(logger)
	return s, nil
}

// read logs the lines, but for those that are too many: the process may be in the hands of somebody else.
func (s *stderr) read(logger hclog.Logger) {
	defer close(s.closed)
	defer s.reader.Close()
	limit := rate.NewLimiter(rate.Every(linesEach), 100)
	for lines := bufio.NewReaderSize(s.reader, lineMost); ; {
		text, more, err := lines.ReadLine()
		line := string(text)
		for more && err == nil {
			_, more, err = lines.ReadLine()
		}
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.first == "" {
			s.first = strings.TrimPrefix(line, "start doors process: ")
		}
		s.mu.Unlock()
		if !memoryDump.MatchString(line) && limit.Allow() {
			logger.Warn("the process that serves doors says", "line", line)
		}
	}
}

// explain adds what the process has said before it ended to an error of its start.
func (s *stderr) explain(err error) error {
	s.end.Close()
	select {
	case <-s.closed:
	case <-time.After(time.Second):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == "" {
		return err
	}
	return fmt.Errorf("%w: it says: %s", err, s.first)
}
