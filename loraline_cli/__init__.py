"""The command `loraline`: every program of the project under one name, from any folder."""
