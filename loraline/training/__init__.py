"""From rows and a base to an adapter."""
