"""The `wardround` command: its commands by name, and the modules that they are in."""

import atexit
import gc

from flows.cli.lazy import lazy_app

atexit.register(gc.freeze)  # the system frees everything at once; searching it first takes seconds

COMMANDS = {
    **dict.fromkeys(
        ("demo", "run", "survey", "check", "coordinate", "coordinator-key"), "flows.cli.train"
    ),
    **dict.fromkeys(("init", "plan", "doctor", "schema"), "flows.cli.planning"),
    **dict.fromkeys(("status", "runs", "report", "events", "verify", "relog", "ui"), "flows.cli.runs"),
    **dict.fromkeys(
        ("promote", "predict", "export-bundle", "verify-bundle", "access"), "flows.cli.models"
    ),
    "audit": "flows.cli.audit",
    "review": "flows.cli.review",
    "site": "flows.cli.site.commands",
    "data": "flows.cli.data",
}
app = lazy_app("Hospitals train one medical-imaging model together.", COMMANDS)
