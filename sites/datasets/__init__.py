"""Public and synthetic data sets from which hospitals are made."""
