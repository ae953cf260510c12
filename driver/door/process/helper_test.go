package process

import (
	"os/exec"
	"regexp"
	"syscall"
)

type unixStat = syscall.Stat_t

func mustCompile(s string) *regexp.Regexp { return regexp.MustCompile(s) }

func must1[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func runSelf(args ...string) (string, error) {
	out, err := exec.Command("/proc/self/exe", args...).CombinedOutput()
	return string(out), err
}
