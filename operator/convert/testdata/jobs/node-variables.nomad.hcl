job "agent" {
  type = "system"
  group "agent" {
    task "agent" {
      driver = "docker"
      config {
        image = "acme/agent:4"
        args  = ["-rack", "${meta.rack}", "-node", "${node.unique.name}"]
      }
      vault {
        role = "agent"
      }
      template {
        data        = <<EOF
rack: {{ env "meta.rack" }}
kernel: {{ env "attr.kernel.name" }}
EOF
        destination = "local/node.yml"
      }
      template {
        data        = <<EOF
datacenter: {{ env "node.datacenter" }}
class: {{ env "node.class" }}
key: {{ with secret "kv/data/default/agent/config" }}{{ .Data.data.key }}{{ end }}
EOF
        destination = "secrets/agent.yml"
      }
    }
  }
}
