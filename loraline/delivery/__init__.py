"""From a server's arguments to Kubernetes objects, a cluster, a commit or processes here."""
