"""One round at the coordinator: statements, releases, aggregation, the record."""
