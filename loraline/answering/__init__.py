"""Three ways to get a base's answers with an adapter and without a server."""
