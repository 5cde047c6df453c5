"""What may leave a hospital, and at what cost."""
