"""What MLflow says when it does not do what it is asked, in errors of our own."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from requests import RequestException

from flows.runs.run import NotAllowed, StoreFailed

FORBIDDEN = 403
ERRORS = (MlflowException, RequestException)
"""What MLflow's client raises where its server refuses, fails or can't be reached."""


@contextmanager
def writing(what: str, whose: str) -> Iterator[None]:
    """Write something to MLflow.

    Args:
        what: is written, as the message says it.
        whose: what may be written, and by which account.

    Raises:
        NotAllowed: this account lacks the right.
        StoreFailed: MLflow has not taken all of it, as with a full disk, or can't be reached.
    """
    try:
        yield
    except ERRORS as error:
        if is_forbidden(error):
            raise NotAllowed(f"This account may not write {whose} in MLflow.") from error
        raise StoreFailed(f"MLflow has not taken {what}: {error}") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Read something from MLflow; raise `StoreFailed` where it does not tell."""
    try:
        yield
    except ERRORS as error:
        raise StoreFailed(f"MLflow has not told {what}: {error}") from error


def is_forbidden(error: Exception) -> bool:
    """Return whether MLflow has refused for lack of rights."""
    response = getattr(error, "response", None)
    return getattr(error, "error_code", "") == "PERMISSION_DENIED" or (
        response is not None and response.status_code == FORBIDDEN
    )
