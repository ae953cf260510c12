package wrapped

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// ExecTaskStreaming runs a command in the task with its streams connected: nomad alloc exec. It ends when the command
// has ended and its output was copied, as docker exec does. Nomad's own asks the engine again and again whether the
// command runs, and ends with the first no (drivers/docker/driver.go, ExecTaskStreaming): the engine says so before the
// command has begun, and when it has ended and the copy of its output has not.
func (d *dockerDriver) ExecTaskStreaming(ctx context.Context, id string, o *drivers.ExecOptions) (
	*drivers.ExitResult, error) {
	defer o.Stdout.Close()
	defer o.Stderr.Close()
	defer o.Stdin.Close()
	status, err := d.InspectTask(id)
	if err != nil {
		return nil, err
	}
	created, err := d.engine.ContainerExecCreate(ctx, status.DriverAttributes["container_id"], container.ExecOptions{
		AttachStdin: true, AttachStdout: true, AttachStderr: true, Tty: o.Tty, Cmd: o.Command})
	if err != nil {
		return nil, fmt.Errorf("create exec: %w", err)
	}
	stream, err := d.engine.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{Tty: o.Tty})
	if err != nil {
		return nil, fmt.Errorf("attach to exec: %w", err)
	}
	defer stream.Close()
	over, end := context.WithCancel(ctx)
	defer end()
	go resize(over, d.engine, created.ID, o.ResizeCh)
	go func() {
		_, _ = io.Copy(stream.Conn, o.Stdin)
		if !o.Tty { // with a terminal, the engine drops the output from then on (container/stream/attach.go)
			_ = stream.CloseWrite()
		}
	}()
	select {
	case <-copyOutput(o, stream.Reader):
		return exitOf(ctx, d.engine, created.ID)
	case <-ctx.Done():
		return nil, fmt.Errorf("read output of exec: %w", ctx.Err())
	}
}

// copyOutput copies the output of a command, which is one stream where it has a terminal, and closes the channel at its
// end. An error is an end too: the engine resets the connection of a command that has not read all of its input. What
// else it can be is the engine's to say, which is asked next.
func copyOutput(o *drivers.ExecOptions, from io.Reader) <-chan struct{} {
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		if o.Tty {
			_, _ = io.Copy(o.Stdout, from)
		} else {
			_, _ = stdcopy.StdCopy(o.Stdout, o.Stderr, from)
		}
	}()
	return copied
}

// resize follows the size of the user's terminal.
func resize(ctx context.Context, engine *client.Client, exec string, sizes <-chan drivers.TerminalSize) {
	for {
		select {
		case s, more := <-sizes:
			if !more {
				return
			}
			_ = engine.ContainerExecResize(ctx, exec, container.ResizeOptions{Height: uint(s.Height), Width: uint(s.Width)})
		case <-ctx.Done():
			return
		}
	}
}

// exitOf returns how a command has ended whose output has. It can have closed its output before.
func exitOf(ctx context.Context, engine *client.Client, exec string) (*drivers.ExitResult, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := engine.ContainerExecInspect(ctx, exec)
		if err != nil {
			return nil, fmt.Errorf("inspect exec: %w", err)
		}
		if !state.Running {
			return &drivers.ExitResult{ExitCode: state.ExitCode}, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for exec: %w", ctx.Err())
		}
	}
}
