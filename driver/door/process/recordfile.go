package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A RecordFile is where calls are recorded. Only root may write to the directory.
type RecordFile struct {
	Dir  string
	Name string // of the files, without what follows it
	Keep int    // older files, beside the one in use
}

func (r *RecordFile) current() string { return filepath.Join(r.Dir, r.Name+".jsonl") }

// open opens the file in use, for lines to be added.
func (r *RecordFile) open() (*os.File, error) {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make record_dir: %w", err)
	}
	info, err := os.Stat(r.Dir)
	if err != nil {
		return nil, fmt.Errorf("open record_dir: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("open record_dir: others can write to %s: do chmod go-w", r.Dir)
	}
	file, err := os.OpenFile(r.current(), os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	info, err = file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open record: %s is no file", r.current())
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// rotate gives the file another name if it has that size, takes the oldest ones away, and returns the next; nil if
// nothing was to be done.
func (r *RecordFile) rotate(size int64) (*os.File, error) {
	info, err := os.Lstat(r.current())
	switch {
	case errors.Is(err, fs.ErrNotExist): // somebody has moved it
		return r.open()
	case err != nil:
		return nil, err
	case info.Size() < size:
		return nil, nil
	}
	at := time.Now().UTC().Format("20060102T150405.000")
	if err := os.Rename(r.current(), filepath.Join(r.Dir, r.Name+"-"+at+".jsonl")); err != nil {
		return nil, err
	}
	if err := r.prune(); err != nil {
		return nil, err
	}
	return r.open()
}

// prune removes the oldest files beyond Keep.
func (r *RecordFile) prune() error {
	old, err := filepath.Glob(filepath.Join(r.Dir, r.Name+"-????????T??????.???.jsonl"))
	if err != nil {
		return err
	}
	slices.Sort(old)
	for _, path := range old[:max(len(old)-r.Keep, 0)] {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}
