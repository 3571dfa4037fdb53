project = "shop"

variable "port" {
  type    = numbr
  default = 80
}
variable "names" {
  type    = list(string)
  default = ["a", 1]
}
variable "limit" {
  default = 5
  validation {
    condition     = var.limit < local.most
    error_message = "The limit is at most ${local.most}."
  }
}
variable "token" {
  sensitive = true
  default   = "s3cr3t"
}

locals {
  most  = 3
  one   = local.two
  two   = local.one
  wrong = locl.most
  list  = [for name in ["x"] : nmae]
}

image "base" {
  version = "1.0.0"
  from    = image.app
}

image "app" {
  version = uper("1.0.0")
  from    = image.base
  run     = ["echo ${substr("abc", 1)}", "%{ if 3 }x%{ endif }"]
}

service "app" {
  for_each = ["a", "a"]
  image    = image.app
}

service "web" {
  image   = image.app
  env     = { TOKEN = "Bearer ${var.token}", NOW = uuid() }
  command = [local.most.x, [1, 2][2], 1 + "x", file("none"), regex("(", "")]
}
