"""The door in front of vLLM: it asks as the adapter was trained, and lets nobody ask otherwise."""
