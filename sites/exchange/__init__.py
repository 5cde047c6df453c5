"""Exchange: storage shared with the coordinator, and the hospital's outbox."""
