"""Papers that people hand in: checklists and sheets, made from what is on record."""
