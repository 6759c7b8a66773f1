"""How a process is stopped, what it says when a disk is full, and what it shows meanwhile."""
