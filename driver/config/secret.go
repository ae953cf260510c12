package config

import (
	"errors"
	"fmt"
	"strings"

	"nomad-driver-vault/driver/template"
)

// Secret is one secret block: a secret as a file or as environment, without a template. Its options are named as in
// Vault, Nomad, the CSI provider and the Secrets Operator, whoever has them first.
type Secret struct {
	Path        string            `codec:"path"`
	Method      string            `codec:"method"`
	Args        map[string]string `codec:"args"`
	Version     int               `codec:"version"`
	Key         string            `codec:"key"`
	Encoding    string            `codec:"encoding"`
	Format      string            `codec:"format"`
	Include     []string          `codec:"include"`
	Exclude     []string          `codec:"exclude"`
	Rename      map[string]string `codec:"rename"`
	Destination string            `codec:"destination"`
	Optional    bool              `codec:"optional"`
	Output

	Label string `codec:"-"` // of the block
}

// String is how messages name it.
func (s *Secret) String() string { return fmt.Sprintf("secret %q", s.Label) }

func (s *Secret) check() error {
	switch {
	case !blockName.MatchString(s.Label):
		return errBlockName
	case strings.Trim(s.Path, "/ ") == "":
		return errors.New(`path is required: name a secret such as "kv/data/app"`)
	case strings.Contains(s.Path, "?"):
		return errors.New("path: parameters belong into args, and the version of a KV secret into version")
	case s.Method != "read" && s.Method != "write":
		return fmt.Errorf(`method %q is unknown: use "read" or "write", as the commands vault read and vault write`, s.Method)
	case s.Version < 0 || s.Version > 0 && s.Method == "write":
		return errors.New("version is that of a KV secret to read: a number from 1, or 0 for the newest")
	case s.Version > 0 && s.Args["version"] != "":
		return errors.New("both version and args.version are set: keep one")
	case s.Optional && s.Method == "write":
		return errors.New(`optional is for what may not be there yet when it is read: method is "write"`)
	case s.PollInterval != "" && s.Method == "write":
		return errors.New("poll_interval is for what is read again, and nothing is written a second time before its lease " +
			"or its life ends: leave it out")
	case s.Env && s.Destination == "" && s.Format != "":
		return errors.New("format is that of a file: set destination too, or leave it out for the environment alone")
	}
	return s.Fields().Check()
}

// Fields returns how the fields of the secret become a file or variables.
func (s *Secret) Fields() template.Fields {
	return template.Fields{Key: s.Key, Encoding: s.Encoding, Format: s.Format, Include: s.Include, Exclude: s.Exclude,
		Rename: s.Rename}
}
