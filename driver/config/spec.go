package config

import (
	"maps"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// TaskSpec returns the HCL specification of what TaskConfig reads, to be merged with the wrapped driver's own.
func TaskSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{
		"vault":        hclspec.NewBlockList("vault", hclspec.NewObject(vaultSpec())),
		"template":     hclspec.NewBlockList("template", hclspec.NewObject(templateSpec())),
		"secret":       hclspec.NewBlockMap("secret", []string{"name"}, hclspec.NewObject(secretSpec())),
		"pki":          hclspec.NewBlockMap("pki", []string{"name"}, hclspec.NewObject(pkiSpec())),
		"door":         hclspec.NewBlockMap("door", []string{"name"}, hclspec.NewObject(doorSpec())),
		"kill_signal":  attr("kill_signal", "string", `""`),
		"kill_timeout": attr("kill_timeout", "string", `"5s"`),
	}
}

func vaultSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{
		"name":          attr("name", "string", `"default"`),
		"role":          attr("role", "string", `""`),
		"cluster":       attr("cluster", "string", `"default"`),
		"namespace":     attr("namespace", "string", `""`),
		"identity":      attr("identity", "string", `"vault"`),
		"identity_file": attr("identity_file", "string", `""`),
		"policies":      hclspec.NewAttr("policies", "list(string)", false),
		"env":           attr("env", "bool", "false"),
		"file":          attr("file", "bool", "false"),
		"change_mode":   attr("change_mode", "string", `"noop"`),
		"change_signal": attr("change_signal", "string", `""`),
	}
}

func templateSpec() map[string]*hclspec.Spec {
	return withOutput(`"0644"`, map[string]*hclspec.Spec{
		"data":                 attr("data", "string", `""`),
		"source":               attr("source", "string", `""`),
		"destination":          attr("destination", "string", `""`),
		"left_delimiter":       attr("left_delimiter", "string", `"{{"`),
		"right_delimiter":      attr("right_delimiter", "string", `"}}"`),
		"error_on_missing_key": attr("error_on_missing_key", "bool", "false"),
	})
}

// withOutput adds to a block's own options those of OutputConfig.
func withOutput(perms string, own map[string]*hclspec.Spec) map[string]*hclspec.Spec {
	all := map[string]*hclspec.Spec{
		"vault":         attr("vault", "string", `"default"`),
		"poll_interval": attr("poll_interval", "string", `""`),
		"once":          attr("once", "bool", "false"),
		"env":           attr("env", "bool", "false"),
		"perms":         attr("perms", "string", perms),
		"uid":           attr("uid", "number", "-1"),
		"gid":           attr("gid", "number", "-1"),
		"splay":         attr("splay", "string", `"5s"`),
		"change_mode":   attr("change_mode", "string", `"restart"`),
		"change_signal": attr("change_signal", "string", `""`),
		"wait": hclspec.NewBlock("wait", false, hclspec.NewObject(map[string]*hclspec.Spec{
			"min": attr("min", "string", `"5s"`),
			"max": attr("max", "string", `""`),
		})),
		"change_script": hclspec.NewBlock("change_script", false, hclspec.NewObject(map[string]*hclspec.Spec{
			"command":       hclspec.NewAttr("command", "string", true),
			"args":          hclspec.NewAttr("args", "list(string)", false),
			"timeout":       attr("timeout", "string", `"5s"`),
			"fail_on_error": attr("fail_on_error", "bool", "false"),
		})),
	}
	maps.Copy(all, own)
	return all
}

func attr(name, kind, value string) *hclspec.Spec {
	return hclspec.NewDefault(hclspec.NewAttr(name, kind, false), hclspec.NewLiteral(value))
}

func secretSpec() map[string]*hclspec.Spec {
	return withOutput(`"0600"`, map[string]*hclspec.Spec{
		"path":        attr("path", "string", `""`),
		"method":      attr("method", "string", `"read"`),
		"args":        hclspec.NewBlockAttrs("args", "string", false),
		"version":     attr("version", "number", "0"),
		"key":         attr("key", "string", `""`),
		"encoding":    attr("encoding", "string", `"utf-8"`),
		"format":      attr("format", "string", `""`),
		"include":     hclspec.NewAttr("include", "list(string)", false),
		"exclude":     hclspec.NewAttr("exclude", "list(string)", false),
		"rename":      hclspec.NewBlockAttrs("rename", "string", false),
		"destination": attr("destination", "string", `""`),
		"optional":    attr("optional", "bool", "false"),
	})
}

func pkiSpec() map[string]*hclspec.Spec {
	spec := withOutput(`"0600"`, map[string]*hclspec.Spec{
		"path":         attr("path", "string", `""`),
		"common_name":  attr("common_name", "string", `""`),
		"alt_names":    hclspec.NewAttr("alt_names", "list(string)", false),
		"ip_sans":      hclspec.NewAttr("ip_sans", "list(string)", false),
		"uri_sans":     hclspec.NewAttr("uri_sans", "list(string)", false),
		"ttl":          attr("ttl", "string", `""`),
		"args":         hclspec.NewBlockAttrs("args", "string", false),
		"cert_file":    attr("cert_file", "string", `""`),
		"key_file":     attr("key_file", "string", `""`),
		"ca_file":      attr("ca_file", "string", `""`),
		"chain_file":   attr("chain_file", "string", `""`),
		"bundle_file":  attr("bundle_file", "string", `""`),
		"renew_before": attr("renew_before", "string", `""`),
		"revoke":       attr("revoke", "bool", "false"),
	})
	for _, name := range []string{"env", "poll_interval"} { // which mean nothing for a certificate
		delete(spec, name)
	}
	return spec
}

// ImageAuthSpec returns the HCL specification of what ImageAuthConfig adds to the wrapped driver's auth block.
func ImageAuthSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{"auth": hclspec.NewBlock("auth", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"vault_path":   attr("vault_path", "string", `""`),
		"username_key": attr("username_key", "string", `"username"`),
		"password_key": attr("password_key", "string", `"password"`),
		"vault":        attr("vault", "string", `"default"`),
	}))}
}

// OperatorDoorSpec returns the HCL specification of an OperatorDoor.
func OperatorDoorSpec() map[string]*hclspec.Spec {
	spec := doorSpec()
	for _, name := range []string{"client_cert", "listen"} { // which are for a job to say
		delete(spec, name)
	}
	spec["namespaces"] = hclspec.NewAttr("namespaces", "list(string)", true)
	spec["policies"] = hclspec.NewAttr("policies", "list(string)", true)
	return spec
}

// doorSpec has no defaults: which there are depends on the kind of the door.
func doorSpec() map[string]*hclspec.Spec {
	spec := map[string]*hclspec.Spec{
		"header": hclspec.NewBlockAttrs("header", "string", false),
		"query":  hclspec.NewBlockAttrs("query", "string", false),
		"basic_auth": hclspec.NewBlock("basic_auth", false, hclspec.NewObject(map[string]*hclspec.Spec{
			"username": hclspec.NewAttr("username", "string", true),
			"password": hclspec.NewAttr("password", "string", true),
		})),
		"client_cert": hclspec.NewBlock("client_cert", false, hclspec.NewObject(map[string]*hclspec.Spec{
			"pki": hclspec.NewAttr("pki", "string", true),
		})),
	}
	for kind, names := range map[string][]string{
		"string": {"url", "bearer", "scrub", "mode", "postgres", "username", "password", "role", "ca_pem", "rate",
			"idle_timeout", "header_timeout", "stale", "record", "vault", "poll_interval"},
		"bool":         {"encoded_slash", "insecure"},
		"number":       {"listen", "max_conns", "sample"},
		"list(string)": {"methods", "paths"},
	} {
		for _, name := range names {
			spec[name] = hclspec.NewAttr(name, kind, false)
		}
	}
	return spec
}
