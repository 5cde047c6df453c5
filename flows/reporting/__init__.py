"""What people read about a run: report, status, progress, tables in Prefect's UI."""
