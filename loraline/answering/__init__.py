"""Three ways to ask a base with an adapter without a server."""
