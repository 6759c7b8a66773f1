"""MLflow: settings, the store, runs, the registered model and its lock, prompts."""
