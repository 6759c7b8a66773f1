"""A small Argo: workflows run on one machine, or are refused by name."""
