package config

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestRegistryCredentialsGoWhereTheOperatorLetsThem(t *testing.T) {
	for image, allowed := range map[string]bool{
		"registry.example.com/team/app:1": true, "registry.example.com:5000/app": true,
		"https://registry.example.com/app": true,
		"busybox":                          true, "library/busybox": true, "docker.io/library/busybox": true,
		"index.docker.io/x/y":  true,
		"evil.example.com/app": false, "registry.example.com.evil.example/app": false, "registry.example.com:6000/app": false,
		"localhost/app": false, "localhost:5000/app": false, "Registry/app": false,
		"registry.example.com@evil.example/app": false,
	} {
		conf := Task{Image: image, Auth: &ImageAuth{VaultPath: "kv/registry"}}
		err := conf.Permit(Operator{AuthRegistries: []string{"registry.example.com", "registry.example.com:5000",
			"docker.io"}}, "default")
		must.Eq(t, allowed, err == nil, must.Sprint(image, err))
		must.NoError(t, conf.Permit(Operator{}, "default"))
		conf.Auth.VaultPath = ""
		must.NoError(t, conf.Permit(Operator{AuthRegistries: []string{"other"}}, "default"))
	}
	task := &Task{Image: "evil.example.com/app", Auth: &ImageAuth{VaultPath: "kv/x"}}
	err := task.permittedAuth(Operator{AuthRegistries: []string{"docker.io"}})
	must.EqError(t, err, "auth: vault_path: the image is pulled from evil.example.com, to which this node's operator "+
		"lets no credentials go (auth_registries)")
}
