package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// The optional interfaces of a driver: the plugin server asserts them on us, so that embedding would lose them.
var (
	_ drivers.ExecTaskStreamingRawDriver = (*Driver)(nil)
	_ drivers.DriverNetworkManager       = (*Driver)(nil)
)

// ExecTaskStreamingRaw runs a command in the task with its streams connected: nomad alloc exec. It serves wrapped
// drivers with the raw interface (exec, raw_exec) and with the friendly one (docker).
func (d *Driver) ExecTaskStreamingRaw(ctx context.Context, id string, cmd []string, tty bool,
	stream drivers.ExecTaskStream) error {
	if raw, ok := d.inner.(drivers.ExecTaskStreamingRawDriver); ok {
		return raw.ExecTaskStreamingRaw(ctx, id, cmd, tty, stream)
	}
	friendly, ok := d.inner.(drivers.ExecTaskStreamingDriver)
	if !ok {
		return errors.New("the wrapped driver cannot execute commands in a running task")
	}
	options, done := drivers.StreamToExecOptions(ctx, cmd, tty, stream)
	result, err := friendly.ExecTaskStreaming(ctx, id, options)
	options.Stdout.Close()
	options.Stderr.Close()
	if err != nil {
		return err
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("execute in task: %w", ctx.Err())
	}
	if err != nil {
		return err
	}
	return stream.Send(drivers.NewExecStreamingResponseExit(result.ExitCode))
}

// CreateNetwork makes an allocation's network where the wrapped driver must do that itself.
func (d *Driver) CreateNetwork(allocID string, request *drivers.NetworkCreateRequest) (
	*drivers.NetworkIsolationSpec, bool, error) {
	if manager, ok := d.inner.(drivers.DriverNetworkManager); ok {
		return manager.CreateNetwork(allocID, request)
	}
	return nil, false, errors.New("the wrapped driver creates no networks")
}

// DestroyNetwork removes what CreateNetwork made.
func (d *Driver) DestroyNetwork(allocID string, spec *drivers.NetworkIsolationSpec) error {
	if manager, ok := d.inner.(drivers.DriverNetworkManager); ok {
		return manager.DestroyNetwork(allocID, spec)
	}
	return nil
}
