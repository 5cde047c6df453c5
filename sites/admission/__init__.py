"""Admission: checks that a study has to pass before it may train at this hospital."""
