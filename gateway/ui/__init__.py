"""The page: ask, compare, batches and history in a browser; a client of the gateway alone."""
