"""Starts: the first model of a run, made of public material before any hospital trains."""
