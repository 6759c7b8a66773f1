"""A training recipe: its keys, their rules, and the YAML files that it is read from."""
