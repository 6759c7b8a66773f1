"""vLLM's arguments, the adapters that it would refuse, and a client of its server."""
