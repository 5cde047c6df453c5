"""An example for each command whose own text has none; `--help` shows it last."""

from collections.abc import Mapping
from typing import Any

SETS = "wardround data {name} --download --out wards --hospitals 4"
"""The example of a command that divides a public set among hospitals."""
EXAMPLES: Mapping[str, str] = {
    "demo": "wardround demo --fresh",
    "run": "wardround run studies/hippocampus.yaml --sites wards",
    "survey": 'wardround survey studies/hippocampus.yaml --sites wards --cron "0 3 * * 1"',
    "check": "wardround check studies/mine.yaml",
    "coordinate": "wardround coordinate",
    "coordinator-key": "wardround coordinator-key",
    "status": "wardround status --json",
    "runs": "wardround runs --json",
    "runs diff": "wardround runs diff hippocampus-20261201-101500-a1b2 hippocampus-20261202-090000-c3d4",
    "verify": "wardround verify --people mine.yaml --json",
    "relog": "wardround relog",
    "ui": "wardround ui --port 5001",
    "promote": "wardround promote --wait-s 3600",
    "predict": "wardround predict hippocampus-approved scan.nii.gz -o mask.nii.gz",
    "export-bundle": "wardround export-bundle hippocampus-approved bundle",
    "verify-bundle": "wardround verify-bundle bundle --people people.yaml",
    "access": "wardround access studies/hippocampus.yaml accounts.yaml",
    "review key": "wardround review key --as ada --role clinician --key ada.key",
    "review show": "wardround review show",
    "review sign": "wardround review sign TERMS --word approved --as ada --role clinician --key ada.key",
    "review approve": "wardround review approve --as ada --key ada.key",
    "review refuse": 'wardround review refuse --as ada --key ada.key --reason "fails on small lesions"',
    "review revoke": 'wardround review revoke --as ada --key ada.key --reason "a fault in the labels"',
    "review enter": "wardround review enter SIGNED",
    "review withdraw": "wardround review withdraw",
    "init site": "wardround init site /srv/wardround",
    "site init": "wardround site init /srv/wardround --yes",
    "site import": "wardround site import /mnt/export /srv/wardround",
    "site check": "wardround site check /srv/wardround --json",
    "site rehearse": "wardround site rehearse hippocampus.yaml /srv/wardround",
    "site worker": "wardround site worker /srv/wardround",
    "site train": "wardround site train hippocampus /srv/wardround",
    "site score": "wardround site score hippocampus /srv/wardround",
    "site waiting": "wardround site waiting /srv/wardround",
    "site approve": "wardround site approve 3f9c /srv/wardround --by ada",
    "site refuse": "wardround site refuse 3f9c /srv/wardround --by ada",
    "site drain": "wardround site drain /srv/wardround --off",
    "site leave": "wardround site leave hippocampus /srv/wardround",
    "site change-key": "wardround site change-key /srv/wardround",
    "site ledger": "wardround site ledger /srv/wardround --verify",
    "site outbox": "wardround site outbox /srv/wardround --json",
    "site scores": "wardround site scores /srv/wardround",
    "site audit": "wardround site audit /srv/wardround",
    "site withdrawn": "wardround site withdrawn /srv/wardround",
    "site recover-ledger": "wardround site recover-ledger /srv/wardround",
    "site ui": "wardround site ui /srv/wardround",
    "data phantoms": "wardround data phantoms --out wards",
}


def with_example(command: Any, path: str) -> None:  # noqa: ANN401  # Typer's Click has no public name
    """Show a command's example at the end of its `--help`, and those of the commands inside it."""
    for name, inner in getattr(command, "commands", {}).items():
        with_example(inner, f"{path} {name}")
    group, _, name = path.partition(" ")
    example = EXAMPLES.get(path) or (SETS.format(name=name) if group == "data" and name else "")
    if example:
        command.epilog = f"Example: {example}"
