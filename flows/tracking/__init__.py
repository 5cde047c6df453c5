"""Runs in MLflow: this package alone calls MLflow's API."""
