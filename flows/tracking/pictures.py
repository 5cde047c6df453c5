"""Pictures of a model on the synthetic reference cases, one each round, for MLflow's slider."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow.tracking import MlflowClient
from PIL import Image

from flows.runs import artifacts
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from flows.tracking import reference_cases

REFERENCES = "reference cases"
BOTH = {".png", ".webp"}
"""The two files of a picture in MLflow: full size, and smaller."""


def of_round(paths: Iterable[str], record: RoundRecord) -> list[str]:
    """Return those of `paths` that belong to a round's picture, in full size and smaller."""
    mark = f"{artifacts.PICTURES}/{REFERENCES}+step+{record.round}+"
    return sorted(path for path in paths if path.startswith(mark))


def is_whole(paths: Iterable[str]) -> bool:
    """Return whether `paths` hold a picture in both of its files."""
    return {Path(path).suffix for path in paths} == BOTH


def log_picture(client: MlflowClient, run: Run, record: RoundRecord, parent: str) -> None:
    """Log a round's picture once, and sign its files; do nothing where a task has no shapes to draw.

    After an interruption MLflow may have a picture without a signature. It counts as ours if one of its
    files is signed, or if its pixels equal the picture drawn again. Where a signed picture is gone, as
    with a new store, another is logged.
    """
    before = of_round(listed(client, parent), record)
    signed = of_round(artifacts.signed_for(run), record)
    if is_whole(signed) and set(signed) <= set(before):
        return
    drawn = reference_cases.picture(run.study, run.model(record), record.round)
    if drawn is None:
        return
    for path in set(signed) - set(before):
        artifacts.drop(run, path)
    with tempfile.TemporaryDirectory() as folder:
        ours = [path for path in before if path in signed or _shows(client, parent, path, drawn, folder)]
        if not ours:
            client.log_image(parent, drawn, key=REFERENCES, step=record.round)
        files = of_round(listed(client, parent), record)
        named = {_stem(path) for path in ours or set(files) - set(before)}
        for path in files:
            if _stem(path) in named and path not in signed:
                data = Path(client.download_artifacts(parent, path, folder)).read_bytes()
                artifacts.keep(run, path, data)


def _stem(path: str) -> str:
    """Return the common start of the names of a picture's two files."""
    return path.removesuffix(".png").removesuffix(".webp").removesuffix("+compressed")


def listed(client: MlflowClient, parent: str) -> list[str]:
    """Return the paths of all pictures of a run."""
    return [file.path for file in client.list_artifacts(parent, artifacts.PICTURES)]


def _shows(client: MlflowClient, parent: str, path: str, drawn: Image.Image, folder: str) -> bool:
    """Return whether a file in MLflow is a PNG with the pixels of `drawn`."""
    if not path.endswith(".png"):
        return False
    try:
        with Image.open(client.download_artifacts(parent, path, folder)) as found:
            return (
                found.size == drawn.size
                and found.convert("RGB").tobytes() == drawn.convert("RGB").tobytes()
            )
    except OSError:  # an incomplete picture
        return False
