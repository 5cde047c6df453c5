"""Setup of a hospital: its first policy, its keys, and a rehearsal."""
