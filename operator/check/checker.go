package check

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/operator"
)

// answerTimeout is how long one cluster may take to answer.
const answerTimeout = 15 * time.Second

var noLogger = hclog.NewNullLogger()

// options are what the command line asks for.
type options struct {
	spec          operator.Jobspec // of -job, -var and -var-file
	alloc         string
	configs       []string // of agents
	cluster, path string
	login, json   bool
	render        bool // in place of the check of roles and policies
	showSecrets   bool
	publisher     operator.Publisher
}

// A checker looks at one job and reports what it finds. One goroutine uses it.
type checker struct {
	options
	report

	nomad  *nomad.Client
	vault  operator.Vault // of VAULT_ADDR
	direct *vault.Client  // the same Vault, asked as the driver asks

	agent    operator.Agent         // of -config
	drivers  map[string]*taskDriver // of -config, by the name that jobs use
	job      *nomad.Job
	running  *nomad.Allocation // of -alloc
	rendered []rendered
	clients  clients
	probed   map[string]bool // whether a cluster answers, by its name and address
}

// connect reads the environment and then clears the VAULT_ variables: the clients of the plugin's clusters must not see
// those of the operator.
func (c *checker) connect() (err error) {
	if c.nomad, err = nomad.NewClient(nomad.DefaultConfig()); err != nil {
		return fmt.Errorf("read the NOMAD_ variables: %w", err)
	}
	if c.vault, err = operator.ConnectVault(); err != nil {
		return err
	}
	c.vault.SetClientTimeout(answerTimeout)
	c.vault.SetMaxRetries(1)
	c.direct, err = vault.NewClient(vault.Cluster{Name: c.cluster, Address: c.vault.Address()}, noLogger)
	if err != nil {
		return fmt.Errorf("read the VAULT_ variables: %w", err)
	}
	for _, entry := range os.Environ() {
		if key, _, _ := strings.Cut(entry, "="); strings.HasPrefix(key, "VAULT_") {
			if err := os.Unsetenv(key); err != nil {
				return fmt.Errorf("unset %s: %w", key, err)
			}
		}
	}
	return nil
}
