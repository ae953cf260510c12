package session

import (
	"fmt"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// Origin is what a saved session says of itself to whoever has no client that may adopt it.
type Origin struct {
	Cluster string
	Address string    // that issued its tokens; empty in states of the first version
	Ends    time.Time // of its last token; zero: one of them does not end
}

// OriginOf reads a state that was first seen at that time: what was renewed after the state was saved is counted from
// then.
func OriginOf(state []byte, seen time.Time) (Origin, error) {
	in, err := decode(state)
	if err != nil {
		return Origin{}, fmt.Errorf("decode saved session: %w", err)
	}
	leases := []vault.Lease{in.Lease}
	for _, t := range in.tokens()[1:] {
		leases = append(leases, t.Lease)
	}
	o := Origin{Cluster: in.Cluster, Address: in.Address}
	for _, l := range leases {
		l = l.Resumed(seen)
		if l.Ends.IsZero() {
			o.Ends = time.Time{}
			break
		}
		o.Ends = sched.Later(o.Ends, l.Ends)
	}
	return o, nil
}

// Reclaim returns the session that Save described for nothing but its Close, whatever the cluster's name, role and
// namespace are now. The error is ErrElsewhere where another address has issued its tokens.
func (c *Cluster) Reclaim(state []byte) (*Session, error) {
	in, err := decode(state)
	if err != nil {
		return nil, fmt.Errorf("decode saved session: %w", err)
	}
	if in.Address != c.Config().Address && (in.Address != "" || in.Cluster != c.Config().Name) {
		return nil, fmt.Errorf("reclaim session: %w: its token is from %s", ErrElsewhere, in.Address)
	}
	s := c.newSession(Options{})
	s.role, s.namespace = in.Role, in.Namespace
	s.resume(in, time.Now())
	return s, nil
}
