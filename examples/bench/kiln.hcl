# The service that `cargo xtask bench` bakes, replaces and loads. Small to start, quick to answer.
project = "bench"

image "bench" {
  version = "1.0.0"
  debian {
    suite    = "bookworm"
    packages = ["python3"]
  }
  user "app" { uid = 1000 }
  copy {
    from = "app/"
    to   = "/opt/app"
  }
  run_as = "app"
  cmd    = ["python3", "/opt/app/server.py"]
}

service "bench" {
  image    = image.bench
  replicas = 2
  port     = 3000
  listen   = 8090
  env      = { GREETING = "first" }
  resources {
    memory = "256MiB"
    pids   = 64
  }
  probe "ready" {
    http   = "/ready"
    period = "250ms"
  }
  strategy "blue-green" { keep_warm = "15m" }
  drain { deadline = "30s" }
}
