"""An audit's numbers as MLflow has them, by line: all of them follow from the audit's record."""

from flows.audits.records import AuditRecord
from flows.runs.records import Signed
from privacy.audit.published import NAME, PROVENANCE


def global_metrics(audit: AuditRecord) -> dict[str, float]:
    """Return the metrics of the line for all together: of the attack on members the worst hospital's."""
    found: dict[str, float | None] = {
        f"audit/{NAME}": max((each[NAME] for each in audit.figures.values()), default=None),
        f"audit/{PROVENANCE}": audit.scans.share if audit.scans else None,
        "audit/failed_checks": float(len(audit.alarms)) if audit.checks else None,
        "audit/epsilon_lower": audit.epsilon_lower,
        "audit/release_provenance": audit.releases.share if audit.releases else None,
    }
    if audit.reconstruction:
        found["audit/inversion_ssim_plain"] = audit.reconstruction.plain.ssim
        private = audit.reconstruction.private
        found["audit/inversion_ssim_private"] = private.ssim if private else None
    return {name: value for name, value in found.items() if value is not None}


def site_metrics(audit: AuditRecord, site: str) -> dict[str, float]:
    """Return the metrics of a hospital's line, ends of intervals included."""
    each = audit.hospitals.get(site)
    if not isinstance(each, Signed):
        return {}
    figures = each.statement.figures
    ends = {f"audit/{name.replace('/', '_')}": value for name, value in figures.items() if "/" in name}
    return {f"audit/{name}": value for name, value in figures.items() if "/" not in name} | ends
