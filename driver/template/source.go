package template

import (
	"context"
	"errors"
	"net/url"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/nomad/api"
)

// Source answers what templates ask of Vault and Nomad. A call blocks until it
// has the answer or ctx ends. During one generation the same question must get
// the same answer, so that two templates never show two credentials. What a
// Source returns is never changed by a template. Its errors reach the caller of
// Execute through errors.Is and errors.As, word for word: they must not quote
// a secret.
type Source interface {
	// Read answers {{ secret "path?version=2" }}. The path has no slash at
	// either end; query is what followed its question mark. No secret there is
	// an error.
	Read(ctx context.Context, path string, query url.Values) (*Secret, error)

	// Exists answers {{ secretExists "path" }}: whether Read would be none of the errors that there is no secret.
	Exists(ctx context.Context, path string, query url.Values) (bool, error)

	// Write answers {{ secret "path" "key=value" }} and {{ pkiCert }}. An
	// answer without a body (a write to KV version 1) is nil without an error.
	Write(ctx context.Context, path string, data map[string]any) (*Secret, error)

	// List answers {{ secrets "path" }} with the names below path. A path with
	// nothing below it is an empty list.
	List(ctx context.Context, path string) ([]string, error)

	// Services answers {{ nomadServices }} with every service name of the
	// task's namespace. An empty region is the task's own.
	Services(ctx context.Context, region string) ([]*api.ServiceRegistrationStub, error)

	// Service answers {{ nomadService }} with the instances of one service, in
	// Nomad's order.
	Service(ctx context.Context, q ServiceQuery) ([]*api.ServiceRegistration, error)

	// Variable answers {{ nomadVar }} and {{ nomadVarExists }}. A variable
	// that does not exist is nil without an error.
	Variable(ctx context.Context, q VariableQuery) (*api.Variable, error)

	// Variables answers {{ nomadVarList }} with the variables whose path
	// begins with q.Path, without their items.
	Variables(ctx context.Context, q VariableQuery) ([]*api.VariableMetadata, error)
}

// ErrAbsent is wrapped by the errors of nomadVar and nomadVarListSafe when
// what they ask for does not exist. consul-template waits in that case, so the
// caller should watch Nomad and execute again rather than give up.
var ErrAbsent = errors.New("does not exist")

// Secret is an answer of Vault as templates see it: consul-template's type, so that templates carry over. Its Data is
// decoded JSON: maps, slices, strings, bools and json.Number.
type Secret = dependency.Secret

// SecretAuth is the token that came with a Secret.
type SecretAuth = dependency.SecretAuth

// ServiceQuery asks Nomad's /v1/service/:name. It is comparable, to serve as a
// key.
type ServiceQuery struct {
	Name   string
	Region string // empty: the task's own
	Choose string // the API's parameter "choose", "<count>|<key>"; empty: every instance
}

// VariableQuery names a Nomad variable, or the prefix of several. It is
// comparable, to serve as a key.
type VariableQuery struct {
	Path      string
	Namespace string // empty: the task's own; "*": all, in a list
	Region    string // empty: the task's own
}
