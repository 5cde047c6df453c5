"""Local training: DP-SGD, SGD, and their examples."""
