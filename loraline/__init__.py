"""The pipeline from data to a served LoRA adapter."""
