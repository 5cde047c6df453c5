"""How a model does on the synthetic reference cases, over the rounds, as MLflow's slider shows it."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow.tracking import MlflowClient
from PIL import Image

from flows import references, shown
from flows.run import RoundRecord, Run

REFERENCES = "reference cases"


def of_round(paths: Iterable[str], record: RoundRecord) -> list[str]:
    """Return those of `paths` that are a round's picture: as it was drawn, and smaller."""
    mark = f"{shown.PICTURES}/{REFERENCES}+step+{record.round}+"
    return sorted(path for path in paths if path.startswith(mark))


def log_picture(client: MlflowClient, run: Run, record: RoundRecord, parent: str) -> None:
    """Log a round's picture once, and sign for its files; nothing where a task has no shapes to draw.

    An interruption may have kept the signature from a picture that is there: it is taken for ours if it
    shows what is drawn again. Of a picture that is signed for and gone, as from a new store, another is
    logged.
    """
    before = of_round(listed(client, parent), record)
    signed = of_round(shown.signed_for(run), record)
    if signed and set(signed) <= set(before):
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
        files = of_round(listed(client, parent), record)
        stems = {path.removesuffix(".png") for path in ours or set(files) - set(before)}
        for path in files:
            if any(path.startswith(stem) for stem in stems):
                data = Path(client.download_artifacts(parent, path, folder)).read_bytes()
                shown.keep(run, path, data)


def listed(client: MlflowClient, parent: str) -> list[str]:
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
