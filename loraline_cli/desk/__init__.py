"""The desk: the process behind the page's Review and Train screens; it holds what they need."""
