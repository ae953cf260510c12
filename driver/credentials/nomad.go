package credentials

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/template"
)

// The Nomad half of a source: services and variables over the task API.

// Services implements template.Source.
func (s *Source) Services(ctx context.Context, region string) ([]template.ServiceName, error) {
	found, err := s.snapshot.nomadData().Services(ctx, taskapi.ServicesQuery{Region: region})
	var names []template.ServiceName
	for _, f := range found {
		names = append(names, template.ServiceName{Name: f.Name, Tags: f.Tags})
	}
	return names, err
}

// Service implements template.Source.
func (s *Source) Service(ctx context.Context, q template.ServiceQuery) ([]template.Service, error) {
	query := taskapi.ServiceQuery{Name: q.Name, Region: q.Region}
	if count, key, ok := strings.Cut(q.Choose, "|"); ok {
		query.Count, _ = strconv.Atoi(count) // the template function wrote it from a number
		query.Key = key
	}
	found, err := s.snapshot.nomadData().Service(ctx, query)
	var instances []template.Service
	for _, f := range found {
		instances = append(instances, template.Service{ID: f.ID, Name: f.Name, Node: f.Node, Address: f.Address, Port: f.Port,
			Datacenter: f.Datacenter, Tags: f.Tags, JobID: f.JobID, AllocID: f.AllocID})
	}
	return instances, err
}

// Variable implements template.Source.
func (s *Source) Variable(ctx context.Context, q template.VariableQuery) (*template.Variable, error) {
	query := taskapi.VariableQuery{Path: q.Path, Namespace: q.Namespace, Region: q.Region}
	found, err := s.snapshot.nomadData().Variable(ctx, query)
	if errors.Is(err, taskapi.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := variable(found.VariableMeta)
	v.Items = found.Items
	return &v, nil
}

// Variables implements template.Source.
func (s *Source) Variables(ctx context.Context, q template.VariableQuery) ([]template.Variable, error) {
	query := taskapi.VariablesQuery{Prefix: q.Path, Namespace: q.Namespace, Region: q.Region}
	found, err := s.snapshot.nomadData().Variables(ctx, query)
	var list []template.Variable
	for _, f := range found {
		list = append(list, variable(f))
	}
	return list, err
}

func variable(m taskapi.VariableMeta) template.Variable {
	return template.Variable{Namespace: m.Namespace, Path: m.Path, CreateIndex: m.CreateIndex, ModifyIndex: m.ModifyIndex,
		CreateTime: m.CreateTime, ModifyTime: m.ModifyTime}
}
