"""A hospital's own MLflow store in its `state/`: the hardest of its own cases, for its own use only.

It listens on loopback alone, and no process of the coordinator uses it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.servers.environment import store_server
from flows.servers.loopback import running
from flows.tracking.gallery import log_gallery, page_of
from models.pictures import overlay_grid
from sites.evaluation.gallery import hardest, seen_models
from sites.hospital import Hospital

HARDEST = 6


@contextmanager
def own_store(folder: Path, port: int | None) -> Iterator[str]:
    """Run the hospital's own MLflow server; yield its address."""
    state = Hospital.open(folder).state
    with running(store_server(state / "mlflow", state / "servers" / "mlflow"), port) as url:
        yield url


def fill(folder: Path, url: str) -> list[str]:
    """Log the models that the hospital's own store lacks; return the runs' pages."""
    hospital, pages = Hospital.open(folder), []
    for seen in seen_models(hospital):
        if known := page_of(url, seen):
            pages.append(known)
            continue
        cases = hardest(hospital, seen, HARDEST)
        if not cases:
            continue
        title = f"{seen.run}, round {seen.round}: the hardest cases of {hospital.name}"
        picture = overlay_grid(cases, seen.study.task.labels, title)
        pages.append(log_gallery(url, seen, cases, picture))
    return sorted(set(pages))
