"""What attacks find on real scans: membership by hospital, canaries, provenance, inversion.

    python benchmarks/audits.py hippocampus pneumonia --json > audits.json

Each study of `studies/` is trained among four hospitals, with comparison of models, and audited with
`wardround audit run`; hospitals' reports are read from their own folders, which only a benchmark may do.

Rows: for each attack at each hospital `{"study", "hospital", "model", "attack", "auc", "low", "high",
"found_at_5", "members", "others"}`, and one row for each study `{"study", "hospital": "all", "checks",
"white_box", "one_run", "claimed", "releases", "by_chance", "ssim_plain", "ssim_private", "ssim_blind",
"train_seconds", "audit_seconds"}`. Hospitals come smallest first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rows import print_rows
from simulation import DATA, ROOT

from flows.audits.records import AuditRecord, audits_of
from flows.runs.paths import Home
from flows.runs.run import runs_of
from sites.audit.audit import reports
from sites.hospital import Hospital

SOURCES = {
    "hippocampus": DATA / "hippocampus",
    "pneumonia": DATA / "pneumoniamnist" / "pneumoniamnist_trainval.npz",
}
BUDGET = {"epsilon": 12.0, "delta": 1e-4}


def audited(name: str, folder: Path, policy: dict[str, Any]) -> tuple[float, float]:
    """Train a study and audit it in a folder; return the seconds of both."""
    skew = ("--skew", "0.5") if name == "pneumonia" else ()
    _wardround(folder, "data", name, "--from", SOURCES[name], "--out", "wards", "--hospitals", 4, *skew)
    for path in (folder / "wards").glob("*/site.yaml"):
        changes = {"audit": policy, "budget": BUDGET, "cross_site": "allow"}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    study = yaml.safe_load((ROOT / "studies" / f"{name}.yaml").read_text())
    study["evaluation"] = {**study.get("evaluation", {}), "cross_site": True}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    seconds = []
    for command in (("run", "study.yaml"), ("audit", "run", "--json")):
        started = time.monotonic()
        _wardround(folder, *command)
        seconds.append(time.monotonic() - started)
    return seconds[0], seconds[1]


def _wardround(folder: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])


def rows(names: list[str], policy: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of each study."""
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            trained, took = audited(name, folder, policy)
            hospitals = [Hospital.open(path.parent) for path in (folder / "wards").glob("*/site.yaml")]
            for hospital in sorted(hospitals, key=lambda each: each.policy.declared_patients):
                yield from _of_hospital(name, hospital)
            (audit,) = audits_of(runs_of(Home(folder))[-1])
            yield {**_of_all(name, audit), "train_seconds": round(trained), "audit_seconds": round(took)}


def _of_hospital(name: str, hospital: Hospital) -> Iterator[dict[str, Any]]:
    (report,) = reports(hospital)
    for each in report.attacks:
        yield {
            "study": name,
            "hospital": hospital.name,
            "model": each.model,
            "attack": each.attack,
            "auc": round(each.auc.value, 3),
            "low": round(each.auc.low, 3),
            "high": round(each.auc.high, 3),
            "found_at_5": round(each.found.value, 3),
            "members": each.members,
            "others": each.others,
        }
    if one := report.one_run:
        yield {"study": name, "hospital": hospital.name, "one_run": one.model_dump()}


def _of_all(name: str, audit: AuditRecord) -> dict[str, Any]:
    box = next((check.epsilon for check in audit.checks if check.epsilon is not None), None)
    images, who = audit.reconstruction, audit.releases
    return {
        "study": name,
        "hospital": "all",
        "checks": {check.name: check.found for check in audit.checks},
        "white_box": box,
        "one_run": audit.one_run.epsilon_lower if audit.one_run else None,
        "claimed": audit.one_run.claimed if audit.one_run else None,
        "releases": f"{who.right} of {who.guesses} ({who.low:.2f} to {who.high:.2f})" if who else None,
        "by_chance": who.chance if who else None,
        "scans": audit.scans.model_dump() if audit.scans else None,
        "ssim_plain": images.plain.ssim if images else None,
        "ssim_private": images.private.ssim if images and images.private else None,
        "ssim_blind": images.blind.ssim if images else None,
        "published": {site: dict(figures) for site, figures in audit.figures.items()},
    }


def main() -> None:
    """Print the rows of the studies that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--shadows", type=int, default=8)
    parser.add_argument("--plain-steps", type=int, default=60)
    asked = parser.parse_args()
    policy = {"epsilon": 4.0, "shadows": asked.shadows, "plain_steps": asked.plain_steps}
    print(json.dumps({"reduced setting": policy}), file=sys.stderr)
    print_rows(rows(asked.studies, policy), as_json=asked.json)


if __name__ == "__main__":
    main()
