package driver

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
)

// raw and friendly are the two ways in which Nomad's drivers execute commands; friendly makes networks too, as docker
// does.
type raw struct{ *wrapped }

func (raw) ExecTaskStreamingRaw(context.Context, string, []string, bool, drivers.ExecTaskStream) error {
	return errWrapped
}

type friendly struct {
	*wrapped
	err error
}

func (f friendly) ExecTaskStreaming(_ context.Context, _ string, o *drivers.ExecOptions) (*drivers.ExitResult, error) {
	_, _ = io.WriteString(o.Stdout, "out")
	return &drivers.ExitResult{ExitCode: 3}, f.err
}

func (friendly) CreateNetwork(alloc string, _ *drivers.NetworkCreateRequest) (*drivers.NetworkIsolationSpec, bool,
	error) {
	return &drivers.NetworkIsolationSpec{Path: alloc}, true, nil
}

func (friendly) DestroyNetwork(string, *drivers.NetworkIsolationSpec) error { return errWrapped }

// terminal is the other end of nomad alloc exec.
type terminal struct {
	out  string
	last *drivers.ExecTaskStreamingResponseMsg
}

func (t *terminal) Recv() (*drivers.ExecTaskStreamingRequestMsg, error) { return nil, io.EOF }

func (t *terminal) Send(m *drivers.ExecTaskStreamingResponseMsg) error {
	t.out += string(m.GetStdout().GetData())
	t.last = m
	return nil
}

func TestWhatEmbeddingWouldHideIsForwarded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	over := func(inner drivers.DriverPlugin) *Driver { return New(ctx, hclog.NewNullLogger(), "vault-fake", inner) }
	base := newWrapped(ctx, &machine{})

	must.ErrorIs(t, over(raw{base}).ExecTaskStreamingRaw(ctx, "id", nil, false, nil), errWrapped)
	must.ErrorContains(t, over(base).ExecTaskStreamingRaw(ctx, "id", nil, false, nil), "cannot execute commands")
	_, _, err := over(base).CreateNetwork("alloc", nil)
	must.ErrorContains(t, err, "creates no networks")
	must.NoError(t, over(base).DestroyNetwork("alloc", nil))

	docker := over(friendly{base, nil})
	spec, created, err := docker.CreateNetwork("alloc", nil)
	must.NoError(t, err)
	must.True(t, created)
	must.Eq(t, "alloc", spec.Path)
	must.ErrorIs(t, docker.DestroyNetwork("alloc", nil), errWrapped)

	var screen terminal
	must.NoError(t, docker.ExecTaskStreamingRaw(ctx, "id", []string{"x"}, false, &screen))
	must.Eq(t, "out", screen.out)
	must.True(t, screen.last.Exited)
	must.Eq(t, 3, int(screen.last.Result.ExitCode))
	failed := errors.New("no such task")
	must.ErrorIs(t, over(friendly{base, failed}).ExecTaskStreamingRaw(ctx, "id", nil, false, &terminal{}), failed)
}
