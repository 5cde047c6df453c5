"""The hospital's side of the protocol: orders in, one signed statement out."""
