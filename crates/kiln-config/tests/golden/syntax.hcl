project = "shop"

service "api" {
  replicas = 
}
