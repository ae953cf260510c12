package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Process is one server of the stack.
type Process struct {
	Name    string
	LogFile string // everything the server wrote, over all its starts

	quit syscall.Signal // what ends it in good order
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and was waited for
}

// launch starts the server. It gets the quit signal as well when the process that started it dies.
func (p *Process) launch(cmd *exec.Cmd) error {
	log, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // Ctrl-C in a terminal is for us: we stop the servers in their order.
	cmd.SysProcAttr.Pdeathsig = p.quit
	done, started := make(chan struct{}), make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, so that thread stays until the child has ended.
		runtime.LockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // How it ended is of no interest: its log says why.
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.cmd, p.done = cmd, done
	return nil
}

// Stop ends the server in good order, by force after half a minute, and returns when it has ended. Stopping twice does
// nothing.
func (p *Process) Stop() error {
	if p.cmd == nil {
		return nil
	}
	if err := p.signal(p.quit); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(30 * time.Second):
		return errors.Join(fmt.Errorf("%s did not end within 30s of signal %q: killed", p.Name, p.quit), p.Kill())
	}
}

// Kill ends the server as a crash does (SIGKILL, to that one process) and returns when it has ended.
func (p *Process) Kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Pause makes the server hang: it accepts connections, and answers nothing until Resume.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

func (p *Process) signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// PID is the server's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Tail returns the last n lines of the server's log, of those that keep wants; nil wants all.
func (p *Process) Tail(n int, keep func(line string) bool) string {
	b, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	lines := slices.Collect(strings.Lines(string(b)))
	if keep != nil {
		lines = slices.DeleteFunc(lines, func(line string) bool { return !keep(line) })
	}
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// await calls ready until it returns nil. Where the process ends first, or ctx does, the error has the end of its log:
// what answers may be another process.
func (p *Process) await(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(errors.New("it has ended"))
		case <-ctx.Done():
		}
	}()
	err := Eventually(ctx, ready)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w; its log ends:\n%s", p.Name, err, p.Tail(40, nil))
	}
	return nil
}

// Eventually calls check until it returns nil. Where ctx ends first, it returns the last error of check and why ctx
// ended.
func Eventually(ctx context.Context, check func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}

// answers returns nil when url answers with status 200.
func answers(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return nil
}

// freePort returns a loopback port that nobody listens on. It lies below the ports that the kernel (32768 and up) and
// Nomad (20000 and up) hand out, so that it is still free when a server that was stopped starts again.
func freePort() (int, error) {
	for range 100 {
		port := 10000 + rand.IntN(10000)
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find free port: none of a hundred is free")
}

// mark is in the environment of every server of the stack in dir, and so of what those start.
func mark(dir string) string { return "NOMAD_DRIVER_VAULT_STACK=" + dir }

// clean is our environment without what would lead the servers elsewhere, and with the mark that sweep finds their
// children by.
func clean(dir string) []string {
	env := []string{mark(dir), "HOME=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp")}
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if key != "HOME" && key != "TMPDIR" && !strings.HasPrefix(key, "VAULT_") && !strings.HasPrefix(key, "NOMAD_") &&
			!strings.HasPrefix(key, "CONSUL_") && !strings.HasPrefix(key, "PG") && !strings.HasPrefix(key, "DOCKER_") {
			env = append(env, kv)
		}
	}
	return env
}
