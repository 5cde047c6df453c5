"""Accounts of a run for people: report, status, progress, tables in Prefect's UI."""
