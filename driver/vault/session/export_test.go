package session

import "nomad-driver-vault/driver/vault"

// Jitter replaces what spreads the cluster's leases, so that a life can be lived once more. Call it before the first
// session is opened.
func (c *Cluster) Jitter(jitter func() float64) { c.client.Jitter = jitter }

// Client is the wire under the cluster.
func (c *Cluster) Client() *vault.Client { return c.client }
