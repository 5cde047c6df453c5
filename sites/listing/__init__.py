"""A hospital's list of cases, in any of the layouts."""
