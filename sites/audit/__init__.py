"""Audits of a training: its mechanism on made-up patients, and attacks on a hospital's own models."""
