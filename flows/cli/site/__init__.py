"""The `wardround site` commands."""
