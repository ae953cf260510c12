package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin"
)

// clients are those that the job could run on or, of -alloc, the one that it runs on; nil if Nomad does not show them.
type clients []*nomad.NodeListStub

// clusterAttributes is what a client publishes of a driver: what it wraps, empty if it is not there or not of this
// plugin, and its clusters.
func clusterAttributes(client *nomad.NodeListStub, driver string) (wraps string, clusters map[string]vault.Cluster) {
	if info := client.Drivers[driver]; info != nil && info.Detected {
		return plugin.ReadFingerprint(driver, info.Attributes)
	}
	return "", nil
}

// clusters is the union of what the clients publish of a driver.
func (all clients) clusters(driver string) (wraps string, clusters map[string]vault.Cluster) {
	clusters = map[string]vault.Cluster{}
	for _, client := range all {
		if w, these := clusterAttributes(client, driver); w != "" {
			wraps = w
			maps.Copy(clusters, these)
		}
	}
	return wraps, clusters
}

// differences says which clients publish what of a cluster. It is empty if all publish the same.
func (all clients) differences(driver, cluster string) string {
	by := map[string][]string{} // names of clients by what they publish
	for _, client := range all {
		wraps, clusters := clusterAttributes(client, driver)
		if wraps == "" {
			continue
		}
		text := "no such cluster"
		if c, ok := clusters[cluster]; ok {
			text = fmt.Sprintf("address = %q jwt_auth_backend_path = %q create_from_role = %q namespace = %q",
				c.Address, c.AuthPath, c.Role, c.Namespace)
		}
		by[text] = append(by[text], client.Name)
	}
	if len(by) < 2 {
		return ""
	}
	var lines []string
	for _, text := range slices.Sorted(maps.Keys(by)) {
		lines = append(lines, shorten(by[text])+": "+text)
	}
	return strings.Join(lines, "; ")
}

// withChroot returns the names of the clients where tasks of the driver have a root of Nomad's making.
func (all clients) withChroot(driver string) (names []string) {
	for _, client := range all {
		info := client.Drivers[driver]
		if info != nil && info.Attributes["driver."+driver+".filesystem"] == "chroot" {
			names = append(names, client.Name)
		}
	}
	return names
}

// shorten lists names of clients, of which there may be thousands.
func shorten(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

// A taskDriver is one driver of this plugin as the check knows it.
type taskDriver struct {
	name, wraps string
	conf        config.Operator
	// local means that conf is of -config and the files that it names are here. Otherwise conf is what clients publish.
	local  bool
	block  map[string]any    // of -config, not decoded
	differ map[string]string // clusters that clients publish differently: who publishes what
}
