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
