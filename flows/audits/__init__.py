"""Audits of a run: what they record, and their pages in MLflow and the report."""
