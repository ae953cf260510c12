job "chart" {
  group "chart" {
    task "chart" {
      driver = "docker"
      config {
        image   = "acme/chart:1"
        command = "chart"
        args    = ["--key", "${KEY}"]
      }
      vault {}
      template {
        left_delimiter       = "[["
        right_delimiter      = "]]"
        error_on_missing_key = true
        once                 = true
        data                 = "[[ with secret \"kv/data/default/chart/config\" ]]KEY=[[ .Data.data.key ]][[ end ]]\nHELM={{ .Values.x }}\n"
        destination          = "secrets/chart.env"
        env                  = true
      }
    }
  }
}
