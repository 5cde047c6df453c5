"""Errors of MLflow, raised as errors of our own."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from requests import RequestException

from flows.runs.run import NotAllowed, StoreFailed

FORBIDDEN = 403
NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""MLflow's error codes for a missing model, version or alias."""
ERRORS = (MlflowException, RequestException)
"""The errors of MLflow's client where its server refuses, fails or can't be reached."""


@contextmanager
def writing(what: str, whose: str) -> Iterator[None]:
    """Write something to MLflow.

    Args:
        what: what is written, for the message.
        whose: whose account may write it, as "the coordinator's".

    Raises:
        NotAllowed: this account lacks the right.
        StoreFailed: MLflow has not stored all of it, as with a full disk, or can't be reached.
    """
    try:
        yield
    except ERRORS as error:
        if is_forbidden(error):
            raise NotAllowed(
                f"This account may not write {what} in MLflow; {whose} account may."
            ) from error
        raise StoreFailed(f"MLflow did not store all of {what}: {error}") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Read something from MLflow; raise `StoreFailed` where it returns nothing."""
    try:
        yield
    except ERRORS as error:
        raise StoreFailed(f"MLflow did not return {what}: {error}") from error


def is_forbidden(error: Exception) -> bool:
    """Return whether MLflow refused for lack of rights."""
    response = getattr(error, "response", None)
    return getattr(error, "error_code", "") == "PERMISSION_DENIED" or (
        response is not None and response.status_code == FORBIDDEN
    )
