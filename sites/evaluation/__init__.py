"""Scores of models on a hospital's evaluation patients, and the survey of its scans."""
