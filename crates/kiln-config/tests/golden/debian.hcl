project = "shop"

image "api" {
  version = "1"
  debian {
    suite      = "bookworm"
    components = ["main", "Non-Free", "main"]
    mirror     = "https://mirror.example.org/debian"
    snapshot   = "2026-09-01"
    arch       = "x86_64"
    recommends = "yes"
  }
}

image "web" {
  version = "1"
  debian {
    suite      = "bookworm"
    components = []
    snapshot   = "last week"
  }
}

image "tool" {
  version = "1"
  from    = "scratc"
}

image "artifacts" {
  version = "1"
  debian {
    suite  = "trixie"
    mirror = "https://artifacts.example.org/api/debian-remote"
  }
}

image "fixes" {
  version = "1"
  debian {
    suite           = "trixie"
    security_mirror = "https://artifacts.example.org/api/fixes"
  }
}

image "none" {
  version = "1"
  debian {
    suite           = "trixie"
    mirror          = "https://artifacts.example.org/api/debian-remote"
    security_mirror = "https://artifacts.example.org/api/fixes"
    security        = false
  }
}
