package plugin

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// EndOrphan ends this process when the agent that started it, parent, has gone before it had the plugin serve. An agent
// that refuses its configuration does not end the process that it validated it with
// (helper/pluginutils/loader/loader.go, Dispense), and an agent that is killed ends none. A process that serves
// outlives its agent, whose successor finds it again: then EndOrphan returns.
func (p *Plugin) EndOrphan(parent int) {
	for !p.Serving() {
		if os.Getppid() != parent {
			removeSockets()
			os.Exit(0)
		}
		time.Sleep(time.Second)
	}
}

// removeSockets removes the files of the unix sockets that this process listens at, as go-plugin does where it ends by
// itself.
func removeSockets() {
	open, _ := os.ReadDir("/proc/self/fd")
	for fd := range len(open) + 3 { // they are numbered from zero, with few gaps
		name, _ := unix.Getsockname(fd)
		if socket, ok := name.(*unix.SockaddrUnix); ok && filepath.IsAbs(socket.Name) {
			_ = os.Remove(socket.Name) // an empty file in the temporary directory would be all that stays
		}
	}
}
