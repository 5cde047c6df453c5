"""A hospital's own machines that take part in its training: as its policy names them, and reached."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from models.config import Config

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("wardround.site")


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


def reach(cluster: ClusterConfig) -> int:
    """Return the number of usable workers; raise OSError or ValueError if nothing answers."""
    with connected(cluster) as client:
        return len(usable(client, cluster))


def connected(cluster: ClusterConfig) -> "Client":
    """Return a client of a cluster.

    Raises:
        ModuleNotFoundError: Dask is not installed.
        OSError: nothing answers, or it has no certificate of the hospital's own.
    """
    from distributed import Client  # noqa: PLC0415  # an extra
    from distributed.security import Security  # noqa: PLC0415

    security = None
    if cluster.certificate is not None:
        security = Security(
            tls_ca_file=str(cluster.ca),
            tls_client_cert=str(cluster.certificate),
            tls_client_key=str(cluster.key),
            require_encryption=True,
        )
    return Client(
        cluster.scheduler, security=security, timeout=10, set_as_default=False, direct_to_workers=True
    )


def living(client: "Client") -> list[str]:
    """Return the addresses of the workers; none where the scheduler does not answer."""
    try:
        return sorted(client.scheduler_info(n_workers=-1).get("workers", ()))
    except Exception:
        return []


def on_loopback(addresses: Sequence[str]) -> list[str]:
    """Return the addresses that only this machine reaches.

    >>> on_loopback(["tcp://127.0.0.1:40321", "tcp://10.0.0.5:40321"])
    ['tcp://127.0.0.1:40321']
    """
    local = re.compile(r"tcp://(127\.\d+\.\d+\.\d+|localhost):\d+")
    return [address for address in addresses if local.fullmatch(address)]


def usable(client: "Client", cluster: ClusterConfig) -> list[str]:
    """Return the workers that scans may be sent to: without TLS those of this machine alone."""
    found = living(client)
    if cluster.scheduler.startswith("tls://"):
        return found
    here = on_loopback(found)
    if len(here) < len(found):
        log.warning(
            "%d workers are not on loopback and get no scan without tls://", len(found) - len(here)
        )
    return here
