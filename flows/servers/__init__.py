"""The Prefect and MLflow servers that a coordinator runs, and their environment."""
