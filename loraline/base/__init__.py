"""What is known of a base model: where it is, how it is loaded, its layers, its tokens."""
