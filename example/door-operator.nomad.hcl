# A door of the operator's own: neither this task nor the author of its job can read the key. The node's operator has the
# block door "pay" in the plugin's configuration, as agent.hcl shows it. The task needs no identity.
#
#   nomad job run door-operator.nomad.hcl
job "hello-door-operator" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while sleep 1; do curl -sS --unix-socket $PAY_SOCK http://door/; echo; done"]

        door "pay" {}
      }
    }
  }
}
