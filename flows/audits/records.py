"""The record of an audit of a run's model, in the run's folder, signed as its other artifacts are."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from flows.runs import artifacts
from flows.runs.record_files import BrokenRun
from flows.runs.records import Absence, RoundRecord, Signed
from flows.runs.run import Run
from models.config import Config
from models.files import sha256_of, write_atomically
from privacy.audit.bounds import share
from privacy.statements import AuditFigures, Sha256
from sites.audit.mechanism import Measured
from sites.audit.one_run import OneRun
from sites.audit.reconstruction import Reconstruction


class Provenance(Config):
    """An attack that tells which hospital a release, or a scan, is of.

    Attributes:
        right, guesses: right guesses, and all.
        chance: the share of right guesses by chance.
        share, low, high: the share of right guesses, and its 95 % interval.
    """

    right: int
    guesses: int
    chance: float
    share: float
    low: float
    high: float


def provenance_of(right: int, guesses: int, chance: float) -> Provenance:
    """Return an attack's success with its interval."""
    found = share(right, guesses)
    return Provenance(
        right=right, guesses=guesses, chance=chance, share=found.value, low=found.low, high=found.high
    )


class AuditRecord(Config):
    """What an audit of a round's global model found.

    Attributes:
        model_sha256: the audited model.
        delta: the study's; None without privacy.
        checks: the checks of the mechanism, on made-up patients; none without privacy.
        one_run: the audit of one training of made-up patients by canaries; None without privacy, and
            where hospitals share the noise.
        reconstruction: what gradient inversion recovers of a made-up patient.
        releases: whose releases are told apart; None where nobody can read one, or after one round.
        scans: whose evaluation patients' scans are told apart by models' outputs, over all hospitals
            that published it; None where fewer than two did.
        hospitals: each hospital's signed figures, or why there are none.
    """

    study: str
    study_sha256: Sha256
    run: str
    round: int
    model_sha256: Sha256
    at_ms: int
    delta: float | None = None
    checks: tuple[Measured, ...] = ()
    one_run: OneRun | None = None
    reconstruction: Reconstruction | None = None
    releases: Provenance | None = None
    scans: Provenance | None = None
    hospitals: Mapping[str, Signed[AuditFigures] | Absence] = Field(default_factory=dict)
    seconds: float = 0.0

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """The published figures by hospital."""
        return {
            site: each.statement.figures
            for site, each in self.hospitals.items()
            if isinstance(each, Signed) and each.statement.figures
        }

    @property
    def alarms(self) -> list[str]:
        """The names of the checks that failed, the canaries' among them."""
        found = [check.name for check in self.checks if not check.holds]
        is_disproved = self.one_run is not None and not self.one_run.holds
        return [*found, *(["canaries"] if is_disproved else [])]

    @property
    def epsilon_lower(self) -> float | None:
        """The largest epsilon that an attack on the mechanism proves at the study's delta, if any."""
        found = [check.epsilon for check in self.checks if check.epsilon is not None]
        if self.one_run and self.one_run.delta == self.delta:
            found.append(self.one_run.epsilon_lower)
        return max(found, default=None)


def path_of(round: int) -> str:
    """Return the path of an audit's record among the run's artifacts, and in its folder."""
    return f"audit/round-{round:03d}.json"


def picture_of(round: int) -> str:
    """Return the path of an audit's picture among the run's artifacts."""
    return f"audit/round-{round:03d}.png"


def sacro_of(round: int) -> str:
    """Return the path of an audit's report for output checkers among the run's artifacts."""
    return f"audit/round-{round:03d}-attacks.json"


def keep(run: Run, path: str, data: bytes) -> None:
    """Sign a file of an audit and store it in the run's folder.

    After a crash between the two there is a signature without a file: no audit yet, which is made again.
    """
    artifacts.keep(run, path, data)
    write_atomically(run.folder / path, data)


def audit_of(run: Run, round: int) -> AuditRecord | None:
    """Return the audit of a round's model; None without one.

    Raises:
        BrokenRun: the coordinator did not sign it, or it can't be read, or is of another model.
    """
    path, record = run.folder / path_of(round), run.records()[round]
    if not path.exists():
        return None
    data = path.read_bytes()
    if artifacts.signed_for(run).get(path_of(round)) != sha256_of(data):
        raise BrokenRun(f"{path}: expected an audit that the coordinator has signed.")
    try:
        found = AuditRecord.model_validate_json(data)
    except ValueError as error:
        raise BrokenRun(f"{path}: expected an audit: {error}") from error
    if (found.run, found.model_sha256) != (run.name, record.model_sha256):
        raise BrokenRun(f"{path}: expected an audit of the model of round {round} of {run.name}.")
    return found


def audits_of(run: Run) -> list[AuditRecord]:
    """Return all audits of a run, in the order of their rounds."""
    found = (audit_of(run, record.round) for record in run.records())
    return [each for each in found if each is not None]


def newest_audit(run: Run, records: Sequence[RoundRecord]) -> AuditRecord | None:
    """Return the newest audit of a run's models, up to the last of these records; None without one."""
    found = (audit_of(run, record.round) for record in reversed(records))
    return next((each for each in found if each is not None), None)
