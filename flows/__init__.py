"""Who does what, and when: the only room that knows Prefect and MLflow."""
