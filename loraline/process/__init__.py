"""A process's signals, its message about a full disk, its progress, its share of the machine."""
