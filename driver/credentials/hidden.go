package credentials

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/identity"
	"nomad-driver-vault/internal/inode"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// CheckHidden returns an error if a process of the task could log in to Vault by itself as the session of that block
// does: it can read an identity that is for the same audience. Looked at is where Nomad puts identities by default. The
// identity of the block itself must be there.
func CheckHidden(block config.Vault, cfg *drivers.TaskConfig) error {
	hidden, err := IdentitySource(block, cfg).Peek()
	if err != nil {
		return err
	}
	shown, err := shownIdentities(cfg)
	if err != nil {
		return err
	}
	for _, where := range slices.Sorted(maps.Keys(shown)) {
		token, err := shown[where].Peek()
		if err != nil {
			continue // what is no identity logs nobody in
		}
		if err := CheckShown(where, token.Audience, hidden.Audience); err != nil {
			return err
		}
	}
	return nil
}

// CheckShown returns an error if an identity that the task can read has an audience of the hidden one, or both have
// none: Vault takes these for the same roles.
func CheckShown(where string, shown, hidden []string) error {
	if len(shown) == 0 && len(hidden) == 0 {
		return fmt.Errorf("the task can read %s, an identity without aud as the hidden one is, and log in to Vault itself: "+
			"give the hidden identity an aud", where)
	}
	for _, aud := range shown {
		if slices.Contains(hidden, aud) {
			return fmt.Errorf("the task can read %s, an identity for %q as well, and log in to Vault itself: give that "+
				"identity another aud, or leave it out", where, aud)
		}
	}
	return nil
}

// shownIdentities returns the identities that Nomad shows the task, by where they are.
func shownIdentities(cfg *drivers.TaskConfig) (map[string]identity.Source, error) {
	all := map[string]identity.Source{}
	for name, value := range cfg.Env {
		if name == "NOMAD_TOKEN" || strings.HasPrefix(name, "NOMAD_TOKEN_") {
			all["the variable "+name] = identity.Source{Name: name, Dir: cfg.TaskDir().Dir, File: "private/none", Env: value}
		}
	}
	entries, err := os.ReadDir(cfg.TaskDir().SecretsDir)
	if err != nil {
		return nil, fmt.Errorf("read secrets directory: %w", inode.Cause(err))
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "nomad_") {
			file := "secrets/" + entry.Name()
			all[file] = identity.Source{Name: entry.Name(), Dir: cfg.TaskDir().Dir, File: file}
		}
	}
	return all, nil
}
