project = "Shop Front"

imgae "api" {}

image "web" {
  version = "1.0/2"
  debain { suite = "bookworm" }
  debian {
    suite    = "Bookworm"
    packages = ["python3=3.11", "curl", "curl", 7]
    mirror   = "ftp://deb.example.org"
  }
  debian = "bookworm"
  user "App" { uid = 0 }
  user "root" { uid = 5 }
  copy {
    from = "../secrets"
    to   = "opt"
  }
  copy { from = "app" }
  env         = { "1st" = "x" }
  cmd         = "python3"
  stop_signal = "TERM"
  allow_leak  = ["private-key"]
}

service "web" {
  image   = image.wbe
  replica = 3
  port    = 70000
  listen  = "localhost:80"
  env     = { PORT = 1 }
}

service "web" {
  image = image.web
}
