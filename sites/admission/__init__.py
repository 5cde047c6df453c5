"""Whether a study may train here, and what has to hold before it does."""
