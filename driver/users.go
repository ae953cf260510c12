package driver

import (
	"cmp"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
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

// checkUser refuses the users that the operator denies, by name and by number, with a group or without, as the agent does for its own exec
// driver (client option user.denylist; the agent does not know our name and checks nothing for us). A task that names none is judged by the
// user that the wrapped driver runs it as, where that is known.
func (c Config) checkUser(name string) error {
	owner, _, _ := strings.Cut(cmp.Or(name, c.DefaultUser), ":")
	if n, err := strconv.Atoi(owner); err == nil {
		if known, err := user.LookupId(strconv.Itoa(n)); err == nil {
			owner = known.Username
		}
	}
	switch denied := slices.Contains(c.DeniedUsers, owner); {
	case denied && name == "":
		return fmt.Errorf("the task names no user and would run as %q: this node's operator denies it (denied_users): set another user in the task", owner)
	case denied:
		return fmt.Errorf("user %q is not allowed: this node's operator denies it (denied_users): set another user in the task", name)
	}
	return nil
}
