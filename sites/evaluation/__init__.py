"""How models do on a hospital's evaluation patients, and what its scans are like."""
