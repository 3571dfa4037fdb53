# A small web service. `kiln up examples/hello` bakes it, starts it and prints its address.
project = "hello"

variable "greeting" {
  type        = string
  default     = "Hello"
  description = "The first word of the answer"
}

image "hello" {
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
  test "answers" {
    http { path = "/health" }
  }
}

service "hello" {
  image    = image.hello
  replicas = 2
  port     = 3000
  listen   = 8080
  env      = { GREETING = var.greeting }
  resources {
    memory = "128MiB"
    cpus   = 0.5
    pids   = 64
  }
  probe "ready" {
    http   = "/ready"
    period = "250ms"
  }
  probe "live" { http = "/health" }
  strategy "blue-green" { keep_warm = "15m" }
  drain { deadline = "30s" }
}

environment "production" {
  service "hello" { replicas = 4 }
}
