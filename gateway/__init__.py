"""The HTTP server in front of vLLM: the prompt of the training, uploads, tasks, keys and limits."""
