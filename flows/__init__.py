"""The coordinator's side and the command line: the only package that imports Prefect and MLflow."""
