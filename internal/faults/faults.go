//go:build !faults

// Package faults marks the steps of a task's life at which a test ends the plugin, as a crash would. Only a program
// that is built with -tags faults has such failpoints; in any other Point does nothing.
package faults

// Point is a failpoint: a step of the task whose key is <allocation>/<task>. Here it does nothing.
func Point(string, string) {}
