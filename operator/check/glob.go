package check

import (
	"regexp"
	"strings"
)

// globMatches matches the globs of bound_claims and of datacenters, in which * stands for anything.
func globMatches(glob, value string) bool {
	ok, _ := regexp.MatchString("^"+strings.ReplaceAll(regexp.QuoteMeta(glob), `\*`, ".*")+"$", value)
	return ok
}
