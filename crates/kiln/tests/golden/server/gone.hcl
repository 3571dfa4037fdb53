# The same project a moment earlier: its only service is removed when kiln.hcl is applied.
project = "golden"

image "server" {
  version    = "1"
  dockerfile = "Dockerfile"
}

service "gone" {
  image = image.server
  port  = 3000
}
