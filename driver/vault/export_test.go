package vault

// Jitter replaces what spreads the client's leases, so that a life can be lived once more. Call it before the first session is opened.
func (c *Client) Jitter(jitter func() float64) { c.jitter = jitter }
