"""A hospital's part in a secure sum."""
