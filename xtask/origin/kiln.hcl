# What `cargo xtask bench proxy` asks through each proxy: small answers, larger ones, and quickly.
project = "origin"

image "origin" {
  version = "1.0.0"
  debian {
    suite    = "bookworm"
    packages = ["nginx-light"]
  }
  copy {
    from = "nginx.conf"
    to   = "/etc/nginx/nginx.conf"
  }
  copy {
    from = "site/"
    to   = "/srv/site"
  }
  run = ["head -c 16384 /dev/zero | tr '\\0' k > /srv/site/16k"]
  cmd = ["nginx", "-g", "daemon off;"]
}

service "origin" {
  image    = image.origin
  replicas = 1
  port     = 80
  listen   = 8091
  tmpfs "/var/lib/nginx" { size = "16MiB" }
  tmpfs "/var/log/nginx" { size = "16MiB" }
  probe "ready" {
    http = "/small"
  }
}
