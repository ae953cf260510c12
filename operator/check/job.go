package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	nomad "github.com/hashicorp/nomad/api"
)

const readNodes = `set NOMAD_TOKEN to a token with node { policy = "read" }`

// readJob reads the job and the clients. An error that is no UsageError is what Nomad says of the job.
func (c *checker) readJob(ctx context.Context) (err error) {
	q := (&nomad.QueryOptions{}).WithContext(ctx)
	if c.alloc != "" {
		return c.readAlloc(q)
	}
	if c.job, err = c.spec.Parse(); err != nil {
		return err
	}
	if namespace := os.Getenv("NOMAD_NAMESPACE"); c.job.Namespace == nil && namespace != "" { // as nomad job run does
		c.job.Namespace = &namespace
	}
	c.job.Canonicalize()
	all, _, err := c.nomad.Nodes().List(q)
	if err != nil {
		c.warn("job", readNodes, "the clients cannot be looked at: %s", nomadSays(err))
		return nil
	}
	c.clients = slices.DeleteFunc(all, func(n *nomad.NodeListStub) bool { return !mayRun(c.job, n) })
	return nil
}

// readAlloc is readJob for -alloc.
func (c *checker) readAlloc(q *nomad.QueryOptions) error {
	found, _, err := c.nomad.Allocations().PrefixList(c.alloc)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d allocations have an ID that begins with %q", len(found), c.alloc)
	}
	if err != nil {
		return err
	}
	if c.running, _, err = c.nomad.Allocations().Info(found[0].ID, q); err != nil {
		return err
	}
	c.job = c.running.Job
	node, _, err := c.nomad.Nodes().Info(c.running.NodeID, q)
	if err != nil {
		c.warn("job", readNodes, "the client cannot be looked at: %s", nomadSays(err))
		return nil
	}
	c.clients = clients{{Name: node.Name, Drivers: node.Drivers}}
	return nil
}

// mayRun reports whether a client may run the job, by its node pool and datacenters.
func mayRun(job *nomad.Job, n *nomad.NodeListStub) bool {
	if pool := cmp.Or(*job.NodePool, "default"); n.Status != nomad.NodeStatusReady || pool != "all" && pool != n.NodePool {
		return false
	}
	in := func(datacenter string) bool { return globMatches(datacenter, n.Datacenter) }
	return len(job.Datacenters) == 0 || slices.ContainsFunc(job.Datacenters, in)
}

// nomadSays is what Nomad answered to a request that failed.
func nomadSays(err error) string {
	var answer nomad.UnexpectedResponseError
	if errors.As(err, &answer) {
		return fmt.Sprintf("%s (%d)", answer.Body(), answer.StatusCode())
	}
	return err.Error()
}
