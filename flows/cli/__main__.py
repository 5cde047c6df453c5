"""`python -m flows.cli` is the `wardround` command."""

from flows.cli.main import app

app()
