"""How many tokens a row has."""
