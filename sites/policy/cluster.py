"""A hospital's own machines that take part in its training, as its policy names them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from models.config import Config


class ClusterConfig(Config):
    """The hospital's own Dask cluster, whose workers sum the gradients of private training.

    Attributes:
        scheduler: address of the Dask scheduler: `tls://host:port`, or `tcp://127.0.0.1:port` with
            workers on this machine. Whoever reaches it can run programs in the hospital's process.
        ca: file with the certificate of the authority that the cluster trusts, relative to `site.yaml`;
            needed with `tls://`, as the next two.
        certificate: file with the hospital's own certificate for the cluster.
        key: file with the private key of that certificate.
    """

    scheduler: Annotated[str, Field(pattern=r"^(tls://[^/]+:\d+|tcp://(127\.0\.0\.1|localhost):\d+)$")]
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _certificates_with_tls(self) -> "ClusterConfig":
        given = [file is not None for file in (self.ca, self.certificate, self.key)]
        if any(given) != all(given) or self.scheduler.startswith("tls://") != all(given):
            raise ValueError("expected ca, certificate and key, all three exactly with tls://")
        return self

    def within(self, folder: Path) -> "ClusterConfig":
        """Return the same with its files' places in the folder of `site.yaml`."""
        files = {name: getattr(self, name) for name in ("ca", "certificate", "key")}
        placed = {name: folder.resolve() / file for name, file in files.items() if file is not None}
        return self.model_copy(update=placed)
