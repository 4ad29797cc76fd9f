"""One host, many processes: fronts that speak HTTP and gRPC beside one engine process, and what watches over them."""
