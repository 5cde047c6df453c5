"""How a model does on the synthetic reference cases, over the rounds, as MLflow's slider shows it."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow.tracking import MlflowClient
from PIL import Image

from flows import references, shown
from flows.run import RoundRecord, Run

REFERENCES = "reference cases"


def is_pictured(run: Run, record: RoundRecord) -> bool:
    """Return whether the coordinator has signed for a round's picture."""
    return bool(_signed(run, record))


def log_picture(client: MlflowClient, run: Run, record: RoundRecord, parent: str) -> None:
    """Log a round's picture once, and sign for its files; nothing where a task has no shapes to draw.

    An interruption may have kept the signature from a picture that is there: it is taken for ours if it
    shows what is drawn again. Of a picture that is signed for and gone, as from a new store, another is
    logged.
    """
    before = _files(client, parent, record)
    signed = _signed(run, record)
    if signed and signed <= set(before):
        return
    drawn = references.picture(run.study, run.model(record), record.round)
    if drawn is None:
        return
    for path in signed:
        shown.drop(run, path)
    with tempfile.TemporaryDirectory() as folder:
        ours = [path for path in before if _shows(client, parent, path, drawn, folder)]
        if not ours:
            client.log_image(parent, drawn, key=REFERENCES, step=record.round)
            ours = [path for path in _files(client, parent, record) if path not in before]
        stems = {path.removesuffix(".png") for path in ours}
        for path in _files(client, parent, record):
            if any(path.startswith(stem) for stem in stems):
                data = Path(client.download_artifacts(parent, path, folder)).read_bytes()
                shown.keep(run, path, data)


def _signed(run: Run, record: RoundRecord) -> set[str]:
    return {path for path in shown.signed_for(run) if path.startswith(_mark(record))}


def _mark(record: RoundRecord) -> str:
    return f"{shown.PICTURES}/{REFERENCES}+step+{record.round}+"


def _files(client: MlflowClient, parent: str, record: RoundRecord) -> list[str]:
    """Return the paths of a round's picture: as it was drawn, and smaller."""
    return sorted(p for p in listed(client, parent) if p.startswith(_mark(record)))


def listed(client: MlflowClient, parent: str) -> Iterable[str]:
    """Return the paths of all pictures of a run."""
    return [file.path for file in client.list_artifacts(parent, shown.PICTURES)]


def _shows(client: MlflowClient, parent: str, path: str, drawn: Image.Image, folder: str) -> bool:
    if not path.endswith(".png"):
        return False
    try:
        with Image.open(client.download_artifacts(parent, path, folder)) as found:
            return (
                found.size == drawn.size
                and found.convert("RGB").tobytes() == drawn.convert("RGB").tobytes()
            )
    except OSError:  # half a picture
        return False
