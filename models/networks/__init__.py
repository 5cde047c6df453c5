"""The MONAI networks that a study may name."""
