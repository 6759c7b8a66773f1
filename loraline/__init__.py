"""One line from data to a served LoRA adapter."""
