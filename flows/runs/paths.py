"""Paths of the coordinator: `.wardround/` and `mlruns/` under one folder."""

from dataclasses import dataclass
from pathlib import Path

from sites.policy.security_log import SecurityLog


@dataclass(frozen=True)
class Home:
    """The coordinator's folder, by default the current one."""

    folder: Path

    @property
    def state(self) -> Path:
        """The folder of all files that are not MLflow's."""
        return self.folder / ".wardround"

    @property
    def security_log(self) -> SecurityLog:
        """The coordinator's log of security events, kept for six years."""
        return SecurityLog(self.state / "security")

    @property
    def runs(self) -> Path:
        """A folder for each run: round records, global models, releases."""
        return self.state / "runs"

    @property
    def public(self) -> Path:
        """The folder of image sets that the coordinator declares public."""
        return self.folder / "public"

    @property
    def exchange(self) -> str:
        """The exchange of a federation on this machine."""
        return str(self.state / "exchange")

    @property
    def coordinator_key(self) -> Path:
        """The coordinator's private key."""
        return self.state / "keys" / "coordinator"

    @property
    def former_keys(self) -> list[str]:
        """The public keys with which the coordinator signed before: `.wardround/keys/former/KEY.pub`."""
        return sorted(path.stem for path in (self.state / "keys" / "former").glob("*.pub"))
