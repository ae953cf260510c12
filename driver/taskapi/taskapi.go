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
)

// A ServicesQuery asks which services are registered with Nomad in the task's namespace.
type ServicesQuery struct {
	Region string // empty: the task's own
}

// A ServiceSummary is one registered service, with the tags of all its instances, sorted.
type ServiceSummary struct {
	Name string `json:"ServiceName"`
	Tags []string
}

// A ServiceQuery asks for the instances of one service in the task's namespace.
type ServiceQuery struct {
	Name   string
	Region string // empty: the task's own
	// Count and Key, both or neither, let Nomad choose so many instances by rendezvous hashing: the same Key gets the same
	// ones for as long as they live.
	Count int
	Key   string
}

// A Service is one instance.
type Service struct {
	ID         string
	Name       string `json:"ServiceName"`
	Namespace  string
	Node       string `json:"NodeID"`
	Datacenter string
	JobID      string
	AllocID    string
	Address    string
	Port       int
	Tags       []string // sorted
}

// A VariableQuery asks for one of Nomad's variables.
type VariableQuery struct {
	Path      string
	Namespace string // empty: the task's own
	Region    string // empty: the task's own
}

// A Variable is one with its items. Items may be secret.
type Variable struct {
	VariableMeta
	Items map[string]string
}

// A VariablesQuery asks which variables there are whose path begins with Prefix, as far as the task may list them.
type VariablesQuery struct {
	Prefix    string
	Namespace string // empty: the task's own; "*": all
	Region    string // empty: the task's own
}

// VariableMeta is a variable without its items. Times are in nanoseconds since 1970.
type VariableMeta struct {
	Namespace   string
	Path        string
	CreateIndex uint64
	ModifyIndex uint64
	CreateTime  int64
	ModifyTime  int64
}

// A question is one of the queries above. It is comparable: equal questions share one answer.
type question interface {
	fmt.Stringer // what is asked, for messages: "read " + String()
	request() (path string, params url.Values)
	decode(body []byte) (any, error) // never a nil interface
	grant() string                   // the ACL rule that allows it
}

func (q ServicesQuery) String() string { return "Nomad services" }

func (q ServicesQuery) request() (string, url.Values) {
	return "/v1/services", url.Values{"region": {q.Region}}
}

func (q ServicesQuery) grant() string { return `capabilities = ["read-job"]` }

func (q ServicesQuery) decode(body []byte) (any, error) {
	var namespaces []struct{ Services []ServiceSummary }
	if err := json.Unmarshal(body, &namespaces); err != nil {
		return nil, err
	}
	all := []ServiceSummary{}
	for _, n := range namespaces {
		all = append(all, n.Services...)
	}
	for _, s := range all {
		slices.Sort(s.Tags)
	}
	// Nomad gathers them in a map, in no order.
	slices.SortFunc(all, func(a, b ServiceSummary) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func (q ServiceQuery) String() string { return fmt.Sprintf("Nomad service %q", q.Name) }

func (q ServiceQuery) request() (string, url.Values) {
	params := url.Values{"region": {q.Region}}
	if q.Count != 0 || q.Key != "" {
		params.Set("choose", fmt.Sprintf("%d|%s", q.Count, q.Key))
	}
	return "/v1/service/" + q.Name, params
}

func (q ServiceQuery) grant() string { return `capabilities = ["read-job"]` }

// decode keeps Nomad's order: by ID, or by the choice.
func (q ServiceQuery) decode(body []byte) (any, error) {
	instances := []Service{}
	if err := json.Unmarshal(body, &instances); err != nil {
		return nil, err
	}
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
	var v *Variable
	if body == nil {
		return v, nil
	}
	err := json.Unmarshal(body, &v)
	return v, err
}

func (q VariablesQuery) String() string {
	return fmt.Sprintf("variables below %q in namespace %q", q.Prefix, q.Namespace)
}

func (q VariablesQuery) request() (string, url.Values) {
	return "/v1/vars", url.Values{"prefix": {q.Prefix}, "namespace": {q.Namespace}, "region": {q.Region}}
}

func (q VariablesQuery) grant() string {
	return fmt.Sprintf(`variables { path %q { capabilities = ["list"] } }`, strings.TrimRight(q.Prefix, "*")+"*")
}

func (q VariablesQuery) decode(body []byte) (any, error) {
	metas := []VariableMeta{}
	err := json.Unmarshal(body, &metas)
	return metas, err
}
