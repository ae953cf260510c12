// Package leaktest fails the tests of a package that leave a goroutine behind: the plugin serves a node for months.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is for what ends by itself a moment after its test, on a busy machine.
const patience = 15 * time.Second

// Main runs the tests, for a TestMain. Goroutines whose stack has one of the words may stay: those of libraries that
// start theirs once and for all.
func Main(m *testing.M, stay ...string) {
	before := stacks(nil)
	code := m.Run()
	left := leftover(before, stay)
	for end := time.Now().Add(patience); len(left) > 0 && time.Now().Before(end); left = leftover(before, stay) {
		time.Sleep(10 * time.Millisecond)
	}
	if len(left) > 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "the tests left %d goroutines running:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// leftover are the stacks of goroutines that were not there before and may not stay.
func leftover(before, stay []string) (left []string) {
	known := map[string]bool{}
	for _, stack := range before {
		known[id(stack)] = true
	}
	for _, stack := range stacks(append(stay, "os/signal.loop", "testing.(*F).Fuzz", "internal/fuzz.")) {
		if !known[id(stack)] {
			left = append(left, stack)
		}
	}
	return left
}

// stacks are those of all goroutines but for this one and those with one of the words.
func stacks(without []string) []string {
	text := make([]byte, 16<<20)
	all := strings.Split(string(text[:runtime.Stack(text, true)]), "\n\n")[1:]
	return slices.DeleteFunc(all, func(stack string) bool {
		return slices.ContainsFunc(without, func(word string) bool { return strings.Contains(stack, word) })
	})
}

// id is the beginning of a stack: "goroutine 7 ".
func id(stack string) string { return stack[:strings.Index(stack, "[")] }
