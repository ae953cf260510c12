package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// errVault stands for an error of the vault package, which callers look for
// through the chain.
type errVault struct{ path string }

func (e *errVault) Error() string { return fmt.Sprintf("read %q: permission denied", e.path) }

// fakeSource answers from maps and writes down what it was asked.
type fakeSource struct {
	secrets   map[string]*Secret
	services  []*api.ServiceRegistration
	variables map[string]*api.Variable
	asked     []string
}

func (f *fakeSource) ask(format string, args ...any) {
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
}

func (f *fakeSource) Read(ctx context.Context, path string, query url.Values) (*Secret, error) {
	f.ask("read %s %s", path, query.Encode())
	if path == "hangs" {
		<-ctx.Done()
		return nil, fmt.Errorf("read %q: %w", path, ctx.Err())
	}
	if s, ok := f.secrets[path]; ok {
		return s, nil
	}
	return nil, &errVault{path}
}

func (f *fakeSource) Exists(_ context.Context, path string, query url.Values) (bool, error) {
	f.ask("exists %s %s", path, query.Encode())
	if path == "denied" {
		return false, &errVault{path}
	}
	return f.secrets[path] != nil, nil
}

func (f *fakeSource) Write(_ context.Context, path string, data map[string]any) (*Secret, error) {
	f.ask("write %s %v", path, data)
	if path == "quoted" {
		return nil, fmt.Errorf("common name %v not allowed by this role", data["common_name"])
	}
	if s, ok := f.secrets[path]; ok {
		return s, nil
	}
	return nil, &errVault{path}
}

func (f *fakeSource) List(_ context.Context, path string) ([]string, error) {
	f.ask("list %s", path)
	if strings.HasPrefix(path, "denied") {
		return nil, &errVault{path}
	}
	return []string{"b", "a", "c/"}, nil
}

func (f *fakeSource) Services(_ context.Context, region string) ([]*api.ServiceRegistrationStub, error) {
	f.ask("services %s", region)
	return []*api.ServiceRegistrationStub{{ServiceName: "web", Tags: []string{"v2", "a"}}, {ServiceName: "db"}}, nil
}

func (f *fakeSource) Service(_ context.Context, q ServiceQuery) ([]*api.ServiceRegistration, error) {
	f.ask("service %+v", q)
	return f.services, nil
}

func (f *fakeSource) Variable(_ context.Context, q VariableQuery) (*api.Variable, error) {
	f.ask("variable %+v", q)
	if q.Path == "broken" {
		return nil, errors.New("read variable: 500")
	}
	return f.variables[q.Path], nil
}

func (f *fakeSource) Variables(_ context.Context, q VariableQuery) ([]*api.VariableMetadata, error) {
	f.ask("variables %+v", q)
	if q.Path == "none" {
		return nil, nil
	}
	return []*api.VariableMetadata{{Namespace: "default", Path: "a/b", ModifyIndex: 7, ModifyTime: 1}}, nil
}

// newSource is a source with one secret of each kind.
func newSource() *fakeSource {
	return &fakeSource{
		secrets: map[string]*Secret{
			"kv/data/app": {Data: map[string]any{
				"data": map[string]any{"password": "hunter2", "pin": "7", "odd": "-+", "half": `se"cret`,
					"multi": "line1\nline2"},
				"metadata": map[string]any{"version": json.Number("3")},
			}},
			"kv1/app": {Data: map[string]any{"user": "sam", "list": []any{"x-first", "x-second"}}},
			"database/api": {LeaseID: "database/api/1", LeaseDuration: 20, Renewable: true, RequestID: "r1",
				Data: map[string]any{"username": "v-api-1"}, Warnings: []string{"w"}},
			"auth/login":  {Data: map[string]any{"token": "hvs.token"}, LeaseDuration: 60},
			"kv1/written": nil,
		},
		services: []*api.ServiceRegistration{
			{ServiceName: "web", Address: "10.0.0.1", Port: 80, Tags: []string{"v2", "blue"}, ID: "i1", NodeID: "n1", JobID: "j",
				AllocID: "a", Datacenter: "dc1"},
			{ServiceName: "web", Address: "10.0.0.2", Port: 81, Tags: []string{"green"}},
		},
		variables: map[string]*api.Variable{
			"nomad/jobs/app": {Namespace: "default", Path: "nomad/jobs/app", CreateIndex: 4, ModifyIndex: 9,
				Items: map[string]string{"user": "u1", "pass": "variable-secret"}},
		},
	}
}
