package door

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
)

func prefixes(all ...string) (parsed []netip.Prefix) {
	for _, p := range all {
		parsed = append(parsed, netip.MustParsePrefix(p))
	}
	return parsed
}

func TestAddressesThatADoorDoesNotConnectTo(t *testing.T) {
	d := Dial{}
	for what, all := range map[string][]string{
		"a loopback address": {"127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
			"::127.0.0.1", "2002:7f00:1::"},
		"a link-local address": {"169.254.0.1", "fe80::1", "fe80::1%lo"},
		"a cloud's metadata address": {"169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "fd00:42::42",
			"100.100.100.200"},
		"a multicast address":         {"224.0.0.1", "ff02::1", "64:ff9b::e000:1"},
		"the unspecified address":     {"0.0.0.0", "::", "::ffff:0.0.0.0"},
		"an address of this host":     {"0.1.2.3"},
		"the broadcast address":       {"255.255.255.255"},
		"an address of a local NAT64": {"64:ff9b:1::7f00:1"},
		"a Teredo address":            {"2001::1"},
		"":                            {"10.0.0.8", "192.0.2.1", "8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "fd00::8"},
	} {
		for _, a := range all {
			err := d.judge(netip.MustParseAddr(a))
			if what == "" {
				must.NoError(t, err, must.Sprint(a))
				continue
			}
			must.ErrorIs(t, err, ErrNotAllowed, must.Sprint(a))
			must.ErrorContains(t, err, " is "+what, must.Sprint(a))
			must.ErrorContains(t, err, "the operator must write allow_cidrs = [", must.Sprint(a))
		}
	}
}

// TestThisNodesAddresses gives a network namespace of its own an address that does not look local.
func TestThisNodesAddresses(t *testing.T) {
	need.Root(t)
	t.Parallel() // a goroutine of its own, whose thread ends with it
	runtime.LockOSThread()
	must.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	must.NoError(t, Dial{}.judge(netip.MustParseAddr("192.0.2.7")))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	must.NoError(t, err)
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	must.NoError(t, err)
	must.NoError(t, lo.SetInet4Addr([]byte{192, 0, 2, 7}))
	must.NoError(t, unix.IoctlIfreq(fd, unix.SIOCSIFADDR, lo))
	for _, a := range []string{"192.0.2.7", "::ffff:192.0.2.7", "64:ff9b::c000:207"} {
		err := Dial{}.judge(netip.MustParseAddr(a))
		must.ErrorIs(t, err, ErrNotAllowed)
		must.ErrorContains(t, err, " is an address of this node")
		must.ErrorContains(t, err, `allow_cidrs = ["192.0.2.7/32"]`)
		must.NoError(t, Dial{AllowCIDRs: prefixes("192.0.2.7/32")}.judge(netip.MustParseAddr(a)))
	}
	must.NoError(t, Dial{}.judge(netip.MustParseAddr("192.0.2.8")))
}

func TestTheOperatorAllowsAddresses(t *testing.T) {
	d := Dial{AllowCIDRs: prefixes("127.0.0.0/8", "::1/128", "10.0.0.0/8")}
	for _, a := range []string{"127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::1", "10.0.0.7"} {
		must.NoError(t, d.judge(netip.MustParseAddr(a)), must.Sprint(a))
	}
	must.ErrorIs(t, d.judge(netip.MustParseAddr("169.254.169.254")), ErrNotAllowed)
}

// TestWhatTheErrorSaysToWriteIsEnough follows the error's advice and finds the address allowed.
func TestWhatTheErrorSaysToWriteIsEnough(t *testing.T) {
	for advice, address := range map[string]string{
		`allow_cidrs = ["127.0.0.1/32"]`:    "127.0.0.1",
		`allow_cidrs = ["127.0.0.2/32"]`:    "64:ff9b::7f00:2",
		`allow_cidrs = ["fe80::1/128"]`:     "fe80::1%eth0",
		`allow_cidrs = ["64:ff9b:1::/128"]`: "64:ff9b:1::",
	} {
		to := netip.MustParseAddr(address)
		must.ErrorContains(t, Dial{}.judge(to), advice)
		must.NoError(t, Dial{AllowCIDRs: prefixes(advice[16 : len(advice)-2])}.judge(to))
	}
}

func TestAllowHosts(t *testing.T) {
	d := Dial{AllowHosts: []string{"api.example.com", "*.stripe.com", "*evil.com", "192.0.2.1"}}
	for host, allowed := range map[string]bool{
		"api.example.com": true, "API.Example.com.": true, "a.stripe.com": true, "a.b.stripe.com": true, "192.0.2.1": true,
		"stripe.com": false, ".stripe.com": false, "notstripe.com": false, "api.example.com.evil.org": false,
		"example.com": false, "192.0.2.2": false, "xevil.com": false, "": false,
	} {
		err := d.judgeName(host)
		must.Eq(t, allowed, err == nil, must.Sprint(host))
		if !allowed {
			must.ErrorIs(t, err, ErrNotAllowed)
			must.ErrorContains(t, err, "among allow_hosts of the plugin's doors block")
		}
	}
	must.NoError(t, Dial{}.judgeName("anything.example"))
}

// TestTheDialledAddressIsJudged connects by name and by address to a server that waits on loopback.
func TestTheDialledAddressIsJudged(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	loopback := Dial{AllowCIDRs: prefixes("127.0.0.0/8")}
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1", "0.0.0.0"} {
		_, err := Dial{}.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		must.ErrorIs(t, err, ErrNotAllowed, must.Sprint(host))
		c, err := loopback.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if host == "0.0.0.0" {
			must.ErrorIs(t, err, ErrNotAllowed)
			continue
		}
		must.NoError(t, err, must.Sprint(host))
		must.NoError(t, c.Close())
	}
	_, err = Dial{AllowHosts: []string{"example.com"}}.DialContext(t.Context(), "tcp", "localhost:"+port)
	must.ErrorIs(t, err, ErrNotAllowed)
	_, err = loopback.DialContext(t.Context(), "udp", l.Addr().String())
	must.ErrorContains(t, err, "is not TCP")
	must.NoError(t, l.Close())
	_, err = loopback.DialContext(t.Context(), "tcp", l.Addr().String())
	must.Error(t, err)
	must.False(t, errors.Is(err, ErrNotAllowed))
}

// TestAHostIsJudgedAsConnectingDoes is for who wants to know before a task runs.
func TestAHostIsJudgedAsConnectingDoes(t *testing.T) {
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		must.ErrorIs(t, Dial{}.Judge(t.Context(), host), ErrNotAllowed, must.Sprint(host))
		must.NoError(t, Dial{AllowCIDRs: prefixes("127.0.0.0/8", "::1/128")}.Judge(t.Context(), host), must.Sprint(host))
	}
	must.NoError(t, Dial{}.JudgeHost("localhost"), must.Sprint("a name is judged when it is resolved"))
	must.ErrorIs(t, Dial{}.JudgeHost("127.0.0.1"), ErrNotAllowed)
	must.ErrorIs(t, Dial{AllowHosts: []string{"api.example.com"}}.JudgeHost("localhost"), ErrNotAllowed)
	err := Dial{}.Judge(t.Context(), "no-such-host.invalid")
	must.ErrorContains(t, err, `resolve "no-such-host.invalid"`)
	must.False(t, errors.Is(err, ErrNotAllowed))
}
