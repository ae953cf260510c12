// Package taskapi answers a task's templates from Nomad's services and variables, with the task's own Nomad identity,
// over the socket that Nomad makes in every task's secrets directory
// (https://developer.hashicorp.com/nomad/api-docs/task-api).
//
// A Watch asks each question once and then keeps the answer current by a blocking query
// (https://developer.hashicorp.com/nomad/api-docs#blocking-queries). A Reading is one consistent pass of the templates
// over the answers; a committed one is the generation in use. Once a question has an answer nothing takes it away:
// while Nomad cannot be asked, the last answer stays.
package taskapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// A servicesQuery asks which services are registered with Nomad in the task's namespace.
type servicesQuery struct {
	Region string // empty: the task's own
}

// A ServiceQuery asks for the instances of one service in the task's namespace.
type ServiceQuery struct {
	Name   string
	Region string // empty: the task's own
	// Choose, "<count>|<key>", lets Nomad choose so many instances by rendezvous hashing: the same key gets the same ones
	// for as long as they live. Empty: all.
	Choose string
}

// A VariableQuery asks for one of Nomad's variables, or for all whose path begins with Path, as far as the task may
// list them.
type VariableQuery struct {
	Path      string
	Namespace string // empty: the task's own; "*": all, in a list
	Region    string // empty: the task's own
}

type variablesQuery VariableQuery

// A question is one of the queries above. It is comparable: equal questions share one answer.
type question interface {
	fmt.Stringer // what is asked, for messages: "read " + String()
	request() (path string, params url.Values)
	decode(body []byte) (any, error) // never a nil interface
	grant() string                   // the ACL rule that allows it
}

func (q servicesQuery) String() string { return "Nomad services" }

func (q servicesQuery) request() (string, url.Values) {
	return "/v1/services", url.Values{"region": {q.Region}}
}

func (q servicesQuery) grant() string { return `capabilities = ["read-job"]` }

func (q servicesQuery) decode(body []byte) (any, error) {
	var namespaces []api.ServiceRegistrationListStub
	if err := json.Unmarshal(body, &namespaces); err != nil {
		return nil, err
	}
	all := []*api.ServiceRegistrationStub{}
	for _, n := range namespaces {
		all = append(all, present(n.Services)...)
	}
	for _, s := range all {
		slices.Sort(s.Tags)
	}
	// Nomad gathers them in a map, in no order.
	slices.SortFunc(all, func(a, b *api.ServiceRegistrationStub) int { return cmp.Compare(a.ServiceName, b.ServiceName) })
	return all, nil
}

func (q ServiceQuery) String() string { return fmt.Sprintf("Nomad service %q", q.Name) }

func (q ServiceQuery) request() (string, url.Values) {
	return "/v1/service/" + q.Name, url.Values{"region": {q.Region}, "choose": {q.Choose}}
}

func (q ServiceQuery) grant() string { return `capabilities = ["read-job"]` }

// decode keeps Nomad's order: by ID, or by the choice.
func (q ServiceQuery) decode(body []byte) (any, error) {
	var instances []*api.ServiceRegistration
	if err := json.Unmarshal(body, &instances); err != nil {
		return nil, err
	}
	instances = present(instances)
	for _, s := range instances {
		slices.Sort(s.Tags)
	}
	return instances, nil
}

func (q VariableQuery) String() string {
	return fmt.Sprintf("variable %q in namespace %q", q.Path, q.Namespace)
}

func (q VariableQuery) request() (string, url.Values) {
	return "/v1/var/" + q.Path, url.Values{"namespace": {q.Namespace}, "region": {q.Region}}
}

func (q VariableQuery) grant() string {
	return fmt.Sprintf(`variables { path %q { capabilities = ["read"] } }`, q.Path)
}

// decode gets no body where there is no such variable; that too is an answer, since nomadVarExists asks for it.
func (q VariableQuery) decode(body []byte) (any, error) {
	var v *api.Variable
	if body == nil {
		return v, nil
	}
	err := json.Unmarshal(body, &v)
	return v, err
}

func (q variablesQuery) String() string {
	return fmt.Sprintf("variables below %q in namespace %q", q.Path, q.Namespace)
}

func (q variablesQuery) request() (string, url.Values) {
	return "/v1/vars", url.Values{"prefix": {q.Path}, "namespace": {q.Namespace}, "region": {q.Region}}
}

func (q variablesQuery) grant() string {
	return fmt.Sprintf(`variables { path %q { capabilities = ["list"] } }`, strings.TrimRight(q.Path, "*")+"*")
}

func (q variablesQuery) decode(body []byte) (any, error) {
	var metas []*api.VariableMetadata
	err := json.Unmarshal(body, &metas)
	return present(metas), err
}

// present returns the entries without those that are null in Nomad's answer. It is never nil.
func present[E any](all []*E) []*E {
	return append([]*E{}, slices.DeleteFunc(all, func(e *E) bool { return e == nil })...)
}
