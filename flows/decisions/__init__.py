"""Decisions of people about models: who may decide, what they sign, what it comes to."""
