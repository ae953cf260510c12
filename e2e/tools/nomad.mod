module nomad-driver-vault/e2e/tools

go 1.26

require github.com/hashicorp/nomad v1.11.3

// As Nomad's own go.mod: a replace line counts in the main module only.
replace (
	github.com/Microsoft/go-winio => github.com/endocrimes/go-winio v0.4.13-0.20190628114223-fb47a8b41948
	github.com/hashicorp/hcl => github.com/hashicorp/hcl v1.0.1-nomad-1
)

// Nomad's go.mod replaces its api by a folder that the module does not carry: this is the same commit as v1.11.3.
replace github.com/hashicorp/nomad/api => github.com/hashicorp/nomad/api v0.0.0-20260324203407-b27b0c2e019a
