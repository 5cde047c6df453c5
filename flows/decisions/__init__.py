"""Decisions of people about models: people, signed verdicts, the release status that follows."""
