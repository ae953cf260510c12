// Package panics says of a panic what may stand in a log.
package panics

import (
	"fmt"
	"runtime"
)

// Text is the message of an error of the Go runtime, and of any other value its type only: the value could hold a secret.
func Text(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", p)
}
