"""What vLLM is started with, what it would refuse, and how it is asked."""
