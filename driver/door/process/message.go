package process

import (
	"time"

	"nomad-driver-vault/driver/door"
)

// A message is what one end of a link tells the other. Of its pointers, one is set, or none in most answers.
type message struct {
	ID     uint64 `json:",omitempty"` // of a request, and of its answer
	Answer bool   `json:",omitempty"`
	Error  string `json:",omitempty"`

	// From the plugin.
	Attach *attach        `json:",omitempty"`
	Open   *open          `json:",omitempty"` // with the listeners
	Use    *use           `json:",omitempty"`
	Close  *closing       `json:",omitempty"`
	Count  *uint64        `json:",omitempty"` // serial number of a door
	Record *struct{}      `json:",omitempty"` // with the file to write on
	Keep   *bool          `json:",omitempty"` // whether this process goes on when the plugin ends
	Drain  *time.Duration `json:",omitempty"` // another process has the doors: end when the calls in flight have

	// From the process.
	Held     *open          `json:",omitempty"` // with the listeners; one for each door, before the answer to Attach
	Reread   *generation    `json:",omitempty"`
	Unused   *generation    `json:",omitempty"`
	Counters *door.Counters `json:",omitempty"` // in the answer to Count
}

// attach is a plugin's first message. Its files are standard error's and, where calls are recorded, the record's.
type attach struct {
	Alone time.Duration // how long the process goes on at most when the plugin does not come back
}

// open is a door. Plugins number them so that no two have the same number, not even of two plugin processes.
type open struct {
	Serial     uint64
	Hash       string // of Spec and where it listens, by the plugin that opened it
	Spec       door.Spec
	Credential *door.Credential `json:",omitempty"`
	Unused     []uint64         `json:",omitempty"` // generations of which no plugin was told
}

type use struct {
	Serial     uint64
	Credential *door.Credential
}

type closing struct {
	Serial uint64
	Drain  time.Duration
}

type generation struct {
	Serial     uint64
	Generation uint64
}
