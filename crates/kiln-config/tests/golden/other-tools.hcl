project = "shop"
image "web" {
  version = "1.0.0"
  debian { suite = "bookworm" }
  copy {
    src = "app.pl"
    dst = "/srv/app.pl"
  }
  run          = ["apt-get", "-y", "install"]
  stop_signal  = "SIGTREM"
  healthcheck {}
  bases = { "debian" = image.web }
  test "compiles" { run = ["/usr/bin/perl", "-c", "/srv/app.pl"] }
  cmd = ["/usr/bin/perl"]
}
service "web" {
  image        = image.web
  scale        = 2
  stopGrace    = "5 minutes"
  readiness    = "/"
  mem_limit    = "1g"
  soak         = "1.5 seconds"
  resources { memory = "0.5GB" }
}
