project = "shop"
bases   = { "debian:bookworm" = image.base, "alpine" = 3, "x" = image.bse }

image "base" {
  version = "1"
  debian { suite = "bookworm" }
}

image "api" {
  version    = "1"
  dockerfile = "../Dockerfile"
  context    = "/srv"
}

image "both" {
  version    = "1"
  dockerfile = "Dockerfile"
  from       = image.base
  run        = ["true"]
  copy {
    from = "a"
    to   = "/a"
  }
}

image "without" {
  version = "1"
  target  = "x"
  debian { suite = "bookworm" }
}

image "one" {
  version    = "1"
  dockerfile = "Dockerfile"
}

image "over" {
  version = "1"
  from    = image.one
}
