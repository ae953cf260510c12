package driver

import (
	"fmt"
	"os/user"
	"strconv"
)

// lookUser returns the ids of a user of this host, or of a number that need not be one.
func lookUser(name string) (uid, gid int, err error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, -1, nil
	}
	known, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("this host does not know it: name a user of the host, or a number")
	}
	uid, _ = strconv.Atoi(known.Uid)
	gid, _ = strconv.Atoi(known.Gid)
	return uid, gid, nil
}

// checkUser refuses the users that the operator denies, by name and by number, as the agent does for its own exec driver
// (client option user.denylist; the agent does not know our name and checks nothing for us).
func (c Config) checkUser(name string) error {
	if len(c.DeniedUsers) == 0 || name == "" {
		return nil
	}
	names := []string{name}
	if byID, err := user.LookupId(name); err == nil {
		names = append(names, byID.Username)
	}
	for _, n := range names {
		if c.denies(n) {
			return fmt.Errorf("user %q is not allowed: this node's operator denies it (denied_users): set another user in the task", name)
		}
	}
	return nil
}
