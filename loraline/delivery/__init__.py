"""From a server's arguments to Kubernetes objects, a cluster or a commit."""
