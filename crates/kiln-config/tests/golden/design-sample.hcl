project = "shop"

image "api" {
  version = "1.4.0"
  debian {                              # or: dockerfile = "Dockerfile"
    suite    = "bookworm"
    packages = ["python3"]
  }
  user "app" { uid = 1000 }
  copy {
    from = "app/"
    to   = "/opt/app"
  }
  run     = ["python3 -m compileall -q /opt/app"]
  run_as  = "app"
  cmd     = ["python3", "/opt/app/server.py"]
  test "answers" {
    http {
      path   = "/health"
      status = 200
    }
  }
  test "no ssh" { absent = ["/usr/sbin/sshd"] }
}

service "api" {
  image    = image.api
  replicas = 3
  port     = 3000                       # the instance's; the host's side is `listen` or a `route`
  listen   = 8080
  env      = { LOG_LEVEL = "info" }
  secret "DATABASE_URL" { from = "file:secrets.age#database_url" }
  volume "uploads" { path = "/var/lib/uploads" }
  tmpfs "/var/cache/api" { size = "64MiB" }     # seeded from the image, with its owners
  resources {
    memory = "256MiB"
    cpus   = 0.5
    pids   = 128
  }
  probe "ready" {
    http   = "/ready"
    period = "1s"
  }
  strategy "blue-green" { keep_warm = "15m" }   # rolling, canary, recreate, promote
  drain { deadline = "30s" }
  rotation {
    max_age = "24h"
    jitter  = "2h"
  }
}

environment "staging" {}
environment "production" {
  after     = "staging"
  approvals = 1
  service "api" { replicas = 6 }
}
