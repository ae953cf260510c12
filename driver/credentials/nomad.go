package credentials

import (
	"context"

	"github.com/hashicorp/nomad/api"

	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/template"
)

// The Nomad half of a template.Source: services and variables over the task API.

// Services implements template.Source.
func (s *Source) Services(ctx context.Context, region string) ([]*api.ServiceRegistrationStub, error) {
	return s.snapshot.nomadData().Services(ctx, region)
}

// Service implements template.Source.
func (s *Source) Service(ctx context.Context, q template.ServiceQuery) ([]*api.ServiceRegistration, error) {
	return s.snapshot.nomadData().Service(ctx, taskapi.ServiceQuery(q))
}

// Variable implements template.Source.
func (s *Source) Variable(ctx context.Context, q template.VariableQuery) (*api.Variable, error) {
	return s.snapshot.nomadData().Variable(ctx, taskapi.VariableQuery(q))
}

// Variables implements template.Source.
func (s *Source) Variables(ctx context.Context, q template.VariableQuery) ([]*api.VariableMetadata, error) {
	return s.snapshot.nomadData().Variables(ctx, taskapi.VariableQuery(q))
}
