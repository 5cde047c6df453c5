"""The first day of a hospital: policy, keys, a rehearsal."""
