"""What a training on this machine needs first, begun before the training's own modules are imported.

Importing torch, MONAI, Prefect and MLflow takes seconds in each of the processes, which need nothing of
each other to do it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.hospitals.template import Template, started_template
from flows.runs.paths import Home
from flows.servers.environment import OwnServers, own_servers


@dataclass(frozen=True)
class Begun:
    """The servers of a home itself and the template of the hospitals' processes, ready or starting."""

    servers: OwnServers
    template: Template


@dataclass(frozen=True)
class Means:
    """The means by which hospitals on this machine, or on a cluster, are run.

    Attributes:
        test_noise: the seed of repeatable noise, for made-up hospitals only.
        profile: a file for the run's spans, as a Chrome trace.
        cluster: the address of a Dask scheduler whose machines have the hospitals' processes; this
            machine alone by default.
    """

    test_noise: int | None = None
    profile: Path | None = None
    cluster: str | None = None


@contextmanager
def begun(home: Home) -> Iterator[Begun]:
    """Begin to start the servers and the template; end them afterwards."""
    with own_servers(home) as servers, started_template(shares=True) as template:
        yield Begun(servers, template)
