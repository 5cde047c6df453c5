"""What a hospital contributes to a round."""
