"""From a file, a bucket or a hub to rows."""
