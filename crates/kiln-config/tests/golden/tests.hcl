project = "shop"

image "api" {
  version = "1"
  debian { suite = "bookworm" }
  test "" { run = "true" }
  test "empty" { timeout = "5s" }
  test "unknown" {
    run     = ["true"]
    timout  = "5s"
    htpp { path = "/" }
    tmpfs   = ["/x"]
    timeout = "1"
    ports   = [0, "80"]
    present = ["etc/passwd"]
  }
  test "commands" {
    command {}
    command {
      run  = "true"
      argv = ["true"]
    }
    command { argv = [] }
    command {
      run  = "true"
      exit = 256
      user = "Not A Name"
      stdout { matches = "(" }
    }
  }
  test "answers" {
    http { path = "health" }
    http { status = 99 }
    http {
      path   = "/"
      method = "POST"
    }
  }
  test "files" {
    file "etc/motd" { mode = "0999" }
    file "/etc/motd" {}
    file "/etc/motd" {}
  }
  test "files" { absent = "/x" }
}
