# What the golden data root runs: see ../README.md.
project = "golden"

variable "release" {
  type    = string
  default = "1"
}

variable "replicas" {
  type    = number
  default = 1
}

# Ready instances answer 200 on /ready; broken ones never do.
variable "broken" {
  type    = bool
  default = false
}

image "server" {
  version    = "1"
  dockerfile = "Dockerfile"
}

# Its old set is warm for a minute: by the time of the test that is over.
service "web" {
  image             = image.server
  replicas          = var.replicas
  port              = 3000
  listen            = "127.83.41.1:18997"
  env               = var.broken ? { RELEASE = var.release, BROKEN = "yes" } : { RELEASE = var.release }
  progress_deadline = "2s"
  resources {
    memory = "16MiB"
    cpus   = 0.5
    pids   = 8
  }
  probe "ready" {
    http   = "/ready"
    period = "100ms"
  }
  strategy "blue-green" { keep_warm = "1m" }
  drain { deadline = "5s" }
}

# Its old set is warm for nine years.
service "warm" {
  image  = image.server
  port   = 3000
  listen = "127.83.41.1:18998"
  env    = { RELEASE = var.release }
  probe "ready" {
    http   = "/ready"
    period = "100ms"
  }
  strategy "blue-green" { keep_warm = "3285d" }
}
