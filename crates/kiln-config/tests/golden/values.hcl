project = "shop"

variable "level" {
  type    = "string"
  default = 3
}

variable "count" { type = "int" }
variable "needed" {}

image "api" {
  version = "1.0.0"
  debian { suite = "bookworm" }
}

service "a" {
  image    = image.api
  replicas = "3"
  port     = 3000.5
  listen   = 8080
  env      = { LEVEL = "is ${var.levle}", LIST = [1] }
  command  = ["x", 1]
  soak     = 5
  tmpfs "cache" { size = "64" }
  tmpfs "/proc/x" { size = "1KiB" }
  tmpfs "/var/ok" {}
  resources {
    memory = 256
    cpus   = 0.0005
    pids   = "many"
  }
  probe "ready" {
    http   = "ready"
    period = "1 second"
  }
  probe "reedy" { http = "/" }
  probe "live" { period = "1s" }
  strategy "rolling" {}
  drain { deadline = "30m1h" }
}

service "b" {
  image  = "api"
  listen = "127.0.0.1:8080"
}

service "c" {
  port    = 1
  command = concat(["a"], [bare])
}

environment "production" {
  replicas = 2
  service "aa" { replicas = 6 }
}
