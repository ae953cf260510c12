package door

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrNotAllowed is what errors of DialContext wrap if a rule of Dial refuses the connection.
var ErrNotAllowed = errors.New("not allowed")

// connectTime is how long one address may take to answer. A dialler tries several of a name, so a call waits longer.
const connectTime = 10 * time.Second

// DialContext connects to the host and port of address over TCP. A name is judged before it is resolved, and each
// address after that, by the very call that connects to it: what a name server says later changes nothing. An error
// that wraps ErrNotAllowed says what the operator must write.
func (d Dial) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := d.judgeName(host); err != nil {
		return nil, fmt.Errorf("connect to %q: %w", address, err)
	}
	if !strings.HasPrefix(network, "tcp") {
		return nil, fmt.Errorf("connect to %q: network %q is not TCP", address, network)
	}
	dialer := net.Dialer{Timeout: connectTime, ControlContext: d.control}
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", address, err)
	}
	return c, nil
}

// control is called with each socket before it is connected, and with the address that it will be connected to.
func (d Dial) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	return d.judge(to.Addr())
}

// JudgeHost judges a host by its name and, where that is an address, by this. What a name resolves to is not judged.
func (d Dial) JudgeHost(host string) error {
	if err := d.judgeName(host); err != nil {
		return err
	}
	if address, err := netip.ParseAddr(host); err == nil {
		return d.judge(address)
	}
	return nil
}

// Judge judges a host as connecting to it does: one of its addresses must be allowed. An error that does not wrap
// ErrNotAllowed says that it cannot be resolved.
func (d Dial) Judge(ctx context.Context, host string) error {
	if err := d.JudgeHost(host); err != nil {
		return err
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return fmt.Errorf("resolve %q: %w", host, err)
	}
	var refused error
	for _, address := range all {
		err := d.judge(address)
		if err == nil {
			return nil
		}
		refused = cmp.Or(refused, err)
	}
	return refused
}

func (d Dial) judgeName(host string) error {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	matches := func(pattern string) bool {
		pattern = strings.ToLower(strings.TrimSuffix(pattern, "."))
		if parent, wild := strings.CutPrefix(pattern, "*"); wild {
			return len(name) > len(parent) && strings.HasPrefix(parent, ".") && strings.HasSuffix(name, parent)
		}
		return name == pattern
	}
	if len(d.AllowHosts) == 0 || slices.ContainsFunc(d.AllowHosts, matches) {
		return nil
	}
	return fmt.Errorf("%w: the host is not among allow_hosts of the plugin's doors block: the operator must add %q there",
		ErrNotAllowed, name)
}

// judge refuses an address, and the IPv4 address that is inside of an IPv6 one.
func (d Dial) judge(to netip.Addr) error {
	to = to.Unmap().WithZone("")
	inner := embedded(to)
	allowed := func(p netip.Prefix) bool { return p.Contains(to) || p.Contains(inner) }
	if slices.ContainsFunc(d.AllowCIDRs, allowed) {
		return nil
	}
	what := kind(to)
	if what == "" && inner != to {
		what = kind(inner)
	}
	if what == "" && isOurs(to, inner) {
		what = "an address of this node"
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("%w: %s is %s, to which doors do not connect: the operator must write "+
		"allow_cidrs = [\"%s/%d\"] in the plugin's doors block", ErrNotAllowed, to, what, inner, inner.BitLen())
}

// isOurs reports whether one of the addresses is this node's, where the agent and others listen that do not reckon with
// its tasks. They are looked up each time: interfaces come and go. When that fails, all are this node's.
func isOurs(addresses ...netip.Addr) bool {
	ours, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(ours, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && slices.Contains(addresses, p.Addr().Unmap())
	})
}

// embeds are the prefixes whose addresses a gateway or the kernel turns into IPv4 ones, and at which byte those begin:
// NAT64 (RFC 6052), 6to4 (RFC 3056), and addresses "compatible" with IPv4 (RFC 4291, 2.5.5.1).
var embeds = map[netip.Prefix]int{
	netip.MustParsePrefix("64:ff9b::/96"): 12,
	netip.MustParsePrefix("2002::/16"):    2,
	netip.MustParsePrefix("::/96"):        12,
}

// embedded returns the IPv4 address inside of an IPv6 address, or the address itself if there is none.
func embedded(a netip.Addr) netip.Addr {
	if a.Is6() && !a.IsUnspecified() && !a.IsLoopback() {
		for prefix, at := range embeds {
			if prefix.Contains(a) {
				b := a.As16()
				return netip.AddrFrom4([4]byte(b[at : at+4]))
			}
		}
	}
	return a
}

// special are addresses that are local to a host or a cloud though they do not look so.
var special = []struct{ prefix, what string }{
	{"0.0.0.0/8", "an address of this host"}, // Linux connects 0.0.0.0 to itself
	{"255.255.255.255/32", "the broadcast address"},
	{"100.100.100.200/32", "a cloud's metadata address"}, // Alibaba
	{"192.0.0.192/32", "a cloud's metadata address"},     // Oracle
	{"168.63.129.16/32", "a cloud's metadata address"},   // Azure
	{"fd00:ec2::/32", "a cloud's metadata address"},      // AWS
	{"fd20:ce::254/128", "a cloud's metadata address"},   // Google
	{"fd00:42::42/128", "a cloud's metadata address"},    // Scaleway
	{"fec0::/10", "a site-local address"},
	{"64:ff9b:1::/48", "an address of a local NAT64"}, // RFC 8215: where the IPv4 address is in it, only the site knows
	{"2001::/32", "a Teredo address"},
}

// kind says what an address is that a door does not connect to unasked; "" is for all others.
func kind(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "a loopback address"
	case a == netip.AddrFrom4([4]byte{169, 254, 169, 254}):
		return "a cloud's metadata address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsMulticast():
		return "a multicast address"
	case a.IsUnspecified():
		return "the unspecified address, which is this host"
	}
	for _, s := range special {
		if netip.MustParsePrefix(s.prefix).Contains(a) {
			return s.what
		}
	}
	return ""
}
