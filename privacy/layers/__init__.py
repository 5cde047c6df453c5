"""What each layer adds to a patient's gradient: rules of layers, and parameters outside layers."""
