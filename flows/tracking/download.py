"""Download of registered models from MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import HTTPError
from requests.exceptions import ConnectionError as Unreachable

from flows import served_model
from flows.tracking.errors import NOT_THERE, reading
from models.files import sha256_of


@dataclass(frozen=True)
class Fetched:
    """A version's downloaded files, and its tags."""

    folder: Path
    tags: Mapping[str, str]


def fetch(name: str, wanted: str, into: Path) -> Fetched:
    """Download a version's files, by number or alias, into a folder.

    Raises:
        LookupError: there is no such version, or its weights are not those that its tag names.
        StoreFailed: MLflow can't be reached.
    """
    client, missing = MlflowClient(), f"MLflow has no version {wanted} of {name}, or lacks its files."
    with reading(f"version {wanted} of {name}"):
        try:
            found = (
                client.get_model_version(name, wanted)
                if wanted.isdecimal()
                else client.get_model_version_by_alias(name, wanted)
            )
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            raise LookupError(missing) from error
        try:
            uri = client.get_model_version_download_uri(name, found.version)
            folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(into)))
            weights = model_in(folder) / served_model.WEIGHTS
        except (MlflowException, HTTPError, OSError) as error:
            if isinstance(error, Unreachable):
                raise
            raise LookupError(missing) from error
    if sha256_of(weights.read_bytes()) != found.tags.get("wardround.sha256"):
        raise LookupError(f"The weights of version {wanted} of {name} are not those that its tag names.")
    return Fetched(folder, found.tags)


def model_in(folder: Path) -> Path:
    """Return the folder that `served_model.load` reads, within all the files of a version."""
    return next((path.parent for path in folder.rglob(served_model.DESCRIPTION)), folder)
