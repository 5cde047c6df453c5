"""What is learned: networks, parameters as data, objectives, strategies."""
