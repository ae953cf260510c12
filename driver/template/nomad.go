package template

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/nomad/api"
)

// The functions below take the arguments and return the types of
// consul-template's own, which byTag, byPort and existing templates expect.

func (x *execution) nomadServices(args ...string) ([]*dependency.NomadServicesSnippet, error) {
	m, err := match(dependency.NomadServicesQueryRe, strings.Join(args, ""), "@<region>")
	if err != nil {
		return nil, err
	}
	names, err := outside(x, func() ([]*api.ServiceRegistrationStub, error) {
		return x.in.Source.Services(x.ctx, m["region"])
	})
	if err != nil {
		return nil, &failed{err, strings.Join(args, "")}
	}
	list := make([]*dependency.NomadServicesSnippet, len(names))
	for i, n := range names {
		list[i] = &dependency.NomadServicesSnippet{Name: n.ServiceName, Tags: slices.Sorted(slices.Values(n.Tags))}
	}
	slices.SortStableFunc(list, func(a, b *dependency.NomadServicesSnippet) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// nomadService takes "<tag>.<name>@<region>", or a count and a key before it to
// choose as many instances as the count says, always the same for one key.
func (x *execution) nomadService(args ...any) ([]*dependency.NomadService, error) {
	var choose string
	if len(args) == 3 {
		count, isInt := args[0].(int)
		key, isString := args[1].(string)
		if !isInt || !isString {
			return nil, errors.New("the first two of three arguments are not a whole number and a string")
		}
		choose, args = fmt.Sprintf("%d|%s", count, key), args[2:]
	}
	if len(args) != 1 {
		return nil, errors.New("the arguments are not a service, or a count, a key and a service")
	}
	name, ok := args[0].(string)
	if !ok {
		return nil, errors.New("the service is not a string")
	}
	m, err := match(dependency.NomadServiceQueryRe, name, "<tag>.<name>@<region>")
	if err != nil {
		return nil, err
	}
	query := ServiceQuery{Name: m["name"], Region: m["region"], Choose: choose}
	found, err := outside(x, func() ([]*api.ServiceRegistration, error) {
		return x.in.Source.Service(x.ctx, query)
	})
	if err != nil {
		return nil, &failed{err, name}
	}
	return instances(found, m["tag"]), nil
}

// instances converts the instances that carry tag, or all for an empty tag.
func instances(found []*api.ServiceRegistration, tag string) []*dependency.NomadService {
	list := make([]*dependency.NomadService, 0, len(found))
	for _, s := range found {
		if tag != "" && !slices.Contains(s.Tags, tag) {
			continue
		}
		list = append(list, &dependency.NomadService{
			ID: s.ID, Name: s.ServiceName, Node: s.NodeID, Address: s.Address, Port: s.Port,
			Datacenter: s.Datacenter, Tags: slices.Sorted(slices.Values(s.Tags)),
			JobID: s.JobID, AllocID: s.AllocID,
		})
	}
	return list
}

func (x *execution) nomadVar(path string) (dependency.NomadVarItems, error) {
	if path == "" {
		return nil, nil
	}
	v, err := x.variable(path)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, &failed{fmt.Errorf("variable %q of Nomad %w: create it", path, ErrAbsent), path}
	}
	for _, item := range v.Items {
		x.hide(item)
	}
	return dependency.NewNomadVariable(v).Items, nil
}

func (x *execution) nomadVarExists(path string) (bool, error) {
	if path == "" {
		return false, nil
	}
	v, err := x.variable(path)
	return v != nil, err
}

func (x *execution) variable(path string) (*api.Variable, error) {
	path = cleanPath(path)
	if path == "" {
		return nil, errors.New("the path is empty")
	}
	m, err := match(dependency.NVGetQueryRe, path, "<path>@<namespace>.<region>")
	if err != nil {
		return nil, err
	}
	query := VariableQuery{Path: m["path"], Namespace: m["namespace"], Region: m["region"]}
	v, err := outside(x, func() (*api.Variable, error) { return x.in.Source.Variable(x.ctx, query) })
	if err != nil {
		return nil, &failed{err, path}
	}
	return v, nil
}

func (x *execution) nomadVarList(prefix ...string) ([]*dependency.NomadVarMeta, error) {
	if len(prefix) > 1 {
		return nil, fmt.Errorf("%d arguments, where one prefix or none is expected", len(prefix))
	}
	m, err := match(dependency.NVListQueryRe, strings.Join(prefix, ""), "<prefix>@<namespace>.<region>")
	if err != nil {
		return nil, err
	}
	if strings.Trim(m["prefix"], "/") == "" {
		m["prefix"] = ""
	}
	query := VariableQuery{Path: m["prefix"], Namespace: m["namespace"], Region: m["region"]}
	found, err := outside(x, func() ([]*api.VariableMetadata, error) {
		return x.in.Source.Variables(x.ctx, query)
	})
	if err != nil {
		return nil, &failed{err, strings.Join(prefix, "")}
	}
	list := make([]*dependency.NomadVarMeta, len(found))
	for i, meta := range found {
		list[i] = dependency.NewNomadVarMeta(meta)
	}
	return list, nil
}

// nomadVarListSafe is nomadVarList for a list that must not be empty, so that
// an outage or a mistake does not empty the task's configuration.
func (x *execution) nomadVarListSafe(prefix ...string) ([]*dependency.NomadVarMeta, error) {
	list, err := x.nomadVarList(prefix...)
	if err == nil && len(list) == 0 {
		under := strings.Join(prefix, "")
		return nil, &failed{fmt.Errorf("any variable of Nomad under %q %w: create one, or use nomadVarList", under,
			ErrAbsent), under}
	}
	return list, err
}

// match splits s into the named groups of re, consul-template's own expression
// for that argument.
func match(re *regexp.Regexp, s, form string) (map[string]string, error) {
	groups := re.FindStringSubmatch(s)
	if groups == nil {
		return nil, fmt.Errorf("argument %q does not have the form %s", s, form)
	}
	m := make(map[string]string)
	for i, name := range re.SubexpNames() {
		m[name] = groups[i]
	}
	return m, nil
}
