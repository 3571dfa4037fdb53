project = "shop"
project = "shop"
service "s" {
  command = ["x"]
  image   = image.none
  probe "ready" { http = "/ready" }
}
