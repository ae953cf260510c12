package vault

import (
	"fmt"
	"strings"
)

// Capabilities are those of which a policy must grant one for the operation.
func (o Op) Capabilities() []string {
	return map[Op][]string{Read: {"read"}, Write: {"create", "update"}, List: {"list"}}[o]
}

// Grant says what is missing in the policies of a role, for a request that is denied. An empty role is not named.
func Grant(role string, policies []string, path string, op Op) string {
	return grant(role, policies, path, `"`+strings.Join(op.Capabilities(), `", "`)+`"`)
}

func grant(role string, policies []string, path, capabilities string) string {
	owner := "the token has"
	if role != "" {
		owner = fmt.Sprintf("role %q grants", role)
	}
	return fmt.Sprintf("%s the policies [%s]; what is missing in one of them is: path %q { capabilities = [%s] }",
		owner, strings.Join(policies, " "), path, capabilities)
}
