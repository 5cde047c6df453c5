"""An audit as the JSON that output checkers of secure research environments know.

The shape is that of the reports of SACRO-ML 2 (https://github.com/AI-SDC/SACRO-ML, `report.json`): one
entry for each attack, with metadata, and an instance for each run of the attack. Keys that Wardround
does not measure are left out; nothing is made up to fill them.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from flows.audits.records import AuditRecord
from privacy.audit.published import NAME


def attack_report(audit: AuditRecord) -> bytes:
    """Return the report of an audit: membership, mechanism, canaries, inversion, provenance."""
    found = {f"{name}_{audit.run}": _entry(audit, name, instances, params)
             for name, params, instances in _attacks(audit)}  # fmt: skip
    return json.dumps(found, indent=4, sort_keys=True).encode()


def _entry(
    audit: AuditRecord, name: str, instances: dict[str, dict[str, Any]], params: dict[str, Any]
) -> dict[str, Any]:
    at = datetime.fromtimestamp(audit.at_ms / 1000, UTC)
    return {
        "log_id": audit.run,
        "log_time": f"{at:%d/%m/%Y %H:%M:%S}",
        "metadata": {
            "wardround_version": version("wardround"),
            "attack_name": name,
            "attack_params": params,
            "global_metrics": {},
            "target_model": audit.model_sha256,
            "target_model_params": {"study_sha256": audit.study_sha256, "round": audit.round},
        },
        "attack_experiment_logger": {"attack_instance_logger": instances},
    }


def _attacks(audit: AuditRecord) -> Iterator[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]]:
    if audit.figures:
        yield "Membership by calibrated loss", {"noise": "charged to each hospital's ledger"}, {
            site: {
                "AUC": figures[NAME],
                "AUC_low": figures[f"low/{NAME}"],
                "AUC_high": figures[f"high/{NAME}"],
            }
            for site, figures in sorted(audit.figures.items())
        }  # fmt: skip
    if audit.checks:
        yield "Mechanism", {"patients": "made up"}, {
            check.name: {"holds": check.holds, "expected": check.due, "found": check.found,
                         "epsilon_lower": check.epsilon}
            for check in audit.checks
        }  # fmt: skip
    if audit.one_run:
        yield "Canaries in one run", {"patients": "made up"}, {"instance_0": audit.one_run.model_dump()}
    if audit.reconstruction:
        yield (
            "Gradient inversion",
            {"patients": "made up"},
            {"instance_0": audit.reconstruction.model_dump()},
        )
    if audit.releases:
        yield "Provenance of releases", {}, {"instance_0": audit.releases.model_dump()}
    if audit.scans:
        yield "Provenance of scans", {}, {"instance_0": audit.scans.model_dump()}
