package credentials

import (
	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault/session"

	"github.com/hashicorp/go-hclog"
)

// Env is what a set needs of the plugin that it belongs to.
type Env struct {
	// Client returns the client of the cluster that is configured under that name now.
	Client func(cluster string) (*session.Cluster, error)
	// ClientOf returns a client of the Vault that has issued a session, by whatever name that is configured now; nil:
	// there is none.
	ClientOf func(session.Origin) *session.Cluster
	// Permit returns an error where the operator does not permit a vault block to tasks of a Nomad namespace.
	Permit func(block config.Vault, namespace string) error

	Plugin string          // its name, for messages that say what the operator can change
	Done   <-chan struct{} // closed when the plugin ends
	Logger hclog.Logger
}

func (env Env) ended() bool {
	select {
	case <-env.Done:
		return true
	default:
		return false
	}
}
