package process

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/door"
)

// verify returns how many lines have the chain that they should, which is what docs/doors.md tells auditors to do.
func verify(text []byte, before [sha256.Size]byte) (good int, last [sha256.Size]byte) {
	for l := range bytes.Lines(text) {
		l = bytes.TrimSuffix(l, []byte("\n"))
		i := bytes.LastIndex(l, []byte(`,"chain":"`))
		if i < 0 {
			return good, before
		}
		sum := chain(before, append(bytes.Clone(l[:i]), '}'))
		if hex.EncodeToString(sum[:])+`"}` != string(l[i+len(`,"chain":"`):]) {
			return good, before
		}
		good, before = good+1, sum
	}
	return good, before
}

func TestTheRecordIsAChainThatRotates(t *testing.T) {
	dir := t.TempDir()
	file := &RecordFile{Dir: dir, Name: "doors", Keep: 2}
	r := newRecord()
	r.to(copyOf(t, must1(file.open())))
	write := func(n int) {
		for range n {
			must.NoError(t, r.line(line{Call: &door.Call{Time: time.Now(), Door: "a", Path: "/<&>"}}))
		}
	}
	write(3)
	text := must1(os.ReadFile(file.current()))
	good, last := verify(text, [sha256.Size]byte{})
	must.Eq(t, 3, good)
	for name, changed := range map[string][]byte{
		"a line is changed": bytes.Replace(text, []byte(`"sent":0`), []byte(`"sent":1`), 1),
		"a line is missing": text[bytes.IndexByte(text, '\n')+1:],
	} {
		good, _ := verify(changed, [sha256.Size]byte{})
		must.Eq(t, 0, good, must.Sprint(name))
	}
	must.Nil(t, must1(file.rotate(1<<20)))
	for range 4 {
		next := must1(file.rotate(1))
		must.NotNil(t, next)
		r.to(copyOf(t, next))
		write(2)
		text := must1(os.ReadFile(file.current()))
		good, last = verify(text, last) // goes on from the file before
		must.Eq(t, 2, good)
	}
	must.Len(t, 3, must1(os.ReadDir(dir)))
	r.to(-1)
}

func copyOf(t *testing.T, file *os.File) int {
	t.Helper()
	copies, err := duplicate([]int{rawFD(file)})
	must.NoError(t, err)
	file.Close()
	return copies[0]
}

func TestADirectoryThatOthersWriteToIsRefused(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.Chmod(dir, 0o777))
	_, err := (&RecordFile{Dir: dir, Name: "doors"}).open()
	must.EqError(t, err, "open record_dir: others can write to "+dir+": do chmod go-w")
	must.NoError(t, os.Chmod(dir, 0o755))
	must.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "doors.jsonl")))
	_, err = (&RecordFile{Dir: dir, Name: "doors"}).open()
	must.ErrorIs(t, err, unix.ELOOP)
}

// A file that cannot be written delays no call, and what is lost is counted in the next line.
func TestWhatIsNotRecordedIsCounted(t *testing.T) {
	r := newRecord()
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	r.to(full)
	for range recordQueue + 10 {
		r.call(door.Call{Door: "a"})
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		r.write()
	}()
	eventually(t, "all are lost", func() bool { return r.lost.Load() == recordQueue+10 })
	file := &RecordFile{Dir: t.TempDir(), Name: "doors"}
	r.to(copyOf(t, must1(file.open())))
	r.call(door.Call{Door: "a"})
	close(r.calls)
	<-over
	r.to(-1)
	text := string(must1(os.ReadFile(file.current())))
	must.StrContains(t, text, `"lost":4106`)
	must.Eq(t, 1, strings.Count(text, "\n"))
}
