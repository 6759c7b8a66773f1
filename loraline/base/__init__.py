"""Base models: their location, loading, layers and tokens."""
