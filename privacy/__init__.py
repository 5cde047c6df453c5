"""Data that may leave a hospital, and its cost in privacy."""
