"""Local training: DP-SGD, SGD, the examples that they see."""
