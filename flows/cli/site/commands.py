"""The `wardround site` commands: a hospital's own side."""

from flows.cli.lazy import lazy_app

COMMANDS = {
    **dict.fromkeys(("init", "import", "check", "rehearse"), "flows.cli.site.data"),
    **dict.fromkeys(
        ("worker", "train", "score", "waiting", "approve", "refuse", "drain", "leave", "change-key"),
        "flows.cli.site.orders",
    ),
    **dict.fromkeys(
        ("ledger", "outbox", "events", "scores", "audit", "sheet", "withdrawn", "recover-ledger", "ui"),
        "flows.cli.site.books",
    ),
}
app = lazy_app("At one hospital: its data, its orders, its ledger and outbox.", COMMANDS, "site")
