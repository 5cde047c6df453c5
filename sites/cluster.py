"""The connection to a hospital's own Dask cluster, and the workers that may get scans."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sites.policy.cluster import ClusterConfig

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("wardround.site")


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
