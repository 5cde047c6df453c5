"""Audits: what an attack on a training finds, and the lower bounds on epsilon that follow."""
