"""Storage shared with the coordinator, and the hospital's outbox."""
