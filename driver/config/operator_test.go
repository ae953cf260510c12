package config

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestUserOfATaskThatNamesNoneIsDeniedToo(t *testing.T) {
	for sentence, c := range map[string]struct{ user, runsAs, says string }{
		"the wrapped driver's is judged": {runsAs: "root",
			says: `the task names no user and would run as "root": this node's operator denies it (denied_users): set another`},
		"also by its number":                         {runsAs: "0", says: `would run as "root"`},
		"another one is not denied":                  {runsAs: "nobody"},
		"nor is one that the image decides":          {},
		"the task's own comes before it":             {user: "nobody", runsAs: "root"},
		"and is denied in other words, as it was so": {user: "0", runsAs: "nobody", says: `user "0" is not allowed`},
	} {
		t.Run(sentence, func(t *testing.T) {
			err := Operator{DeniedUsers: []string{"root"}, DefaultUser: c.runsAs}.PermitUser(c.user)
			if c.says == "" {
				must.NoError(t, err)
				return
			}
			must.ErrorContains(t, err, c.says)
		})
	}
}

// Docker reads the number of a user as this program does, and takes root where there is a group alone.
func TestDeniedUserIsKnownByEachOfItsNames(t *testing.T) {
	for user, allowed := range map[string]bool{
		"root": false, "root:nogroup": false, "0": false, "00": false, "+0": false, "-0": false,
		"0:65534": false, "000:0": false,
		":0": false, ":root": false, ":": false, "1": true, "nobody": true, "10": true, "of-the-image": true, "": true,
	} {
		for _, denied := range []string{"root", "0", "00"} {
			err := Operator{DeniedUsers: []string{denied}}.PermitUser(user)
			must.Eq(t, allowed, err == nil, must.Sprintf("user %q, denied %q: %v", user, denied, err))
		}
	}
	must.ErrorContains(t, Operator{}.PermitUser(":0"), `user ":0" names a group and no user: write it as user:group`)
	must.NoError(t, Operator{DeniedUsers: []string{"nobody-knows"}}.PermitUser("also-unknown"))
}

func TestOperatorsConfigIsChecked(t *testing.T) {
	good := Operator{StateDir: "/x", StartTimeout: time.Minute, PollInterval: time.Minute, MinPollInterval: time.Second}
	must.NoError(t, good.Validate())
	for says, change := range map[string]func(*Operator){
		`start_timeout 1ms is too short: set 1s or more`:    func(c *Operator) { c.StartTimeout = time.Millisecond },
		`linger -1s is negative: set 0s to revoke at once`:  func(c *Operator) { c.Linger = -time.Second },
		`min_poll_interval 0s is too short: set 1s or more`: func(c *Operator) { c.MinPollInterval = 0 },
		`poll_interval 1s is below min_poll_interval 2s`: func(c *Operator) {
			c.PollInterval,
				c.MinPollInterval = time.Second, 2*time.Second
		},
		`state_dir is empty: leave it out for the default`: func(c *Operator) { c.StateDir = "" },
	} {
		c := good
		change(&c)
		must.ErrorContains(t, c.Validate(), says)
	}
}
