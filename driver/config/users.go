package config

import (
	"cmp"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// LookupUser returns the ids of a user of this host, or of a number that need not be one.
func LookupUser(name string) (uid, gid int, err error) {
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

// DoorsUser is the user and group of the processes that serve doors. No task may run as that one: it could signal them.
const DoorsUser = 65531

// PermitUser refuses the users that the operator denies, by name and by number however it is written, with a group or
// without, as the agent does for its own exec driver (client option user.denylist; the agent does not know our name
// and checks nothing for us). A task that names none is judged by the user that the wrapped driver runs it as, where
// that is known. A group alone leaves the user to Docker, which takes root.
func (c Operator) PermitUser(name string) error {
	owner, _, _ := strings.Cut(cmp.Or(name, c.DefaultUser), ":")
	if owner == "" && name != "" {
		return fmt.Errorf("user %q names a group and no user: write it as user:group", name)
	}
	if sameUser(strconv.Itoa(DoorsUser), owner) {
		return fmt.Errorf("user %q is that of the process which serves doors: set another user in the task", name)
	}
	is := func(denied string) bool { return denied == owner || owner != "" && sameUser(denied, owner) }
	switch i := slices.IndexFunc(c.DeniedUsers, is); {
	case i >= 0 && name == "":
		return fmt.Errorf("the task names no user and would run as %q: this node's operator denies it (denied_users): set "+
			"another user in the task", c.DeniedUsers[i])
	case i >= 0:
		return fmt.Errorf("user %q is not allowed: this node's operator denies it (denied_users): "+
			"set another user in the task", name)
	}
	return nil
}

// sameUser reports whether two names or numbers are those of one user of this host.
func sameUser(a, b string) bool {
	one, _, err := LookupUser(a)
	if err != nil {
		return false
	}
	other, _, err := LookupUser(b)
	return err == nil && one == other
}
