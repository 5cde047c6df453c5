"""The files of a run's records, one for each finished round."""

from functools import lru_cache
from pathlib import Path

from flows.runs.records import GENESIS, RoundRecord
from models.errors import ReportToUs


class BrokenRun(ReportToUs):
    """A run's folder differs from what Wardround wrote."""


def record_path(folder: Path, round: int) -> Path:
    """Return the path of a round's record in a run's folder."""
    return folder / "rounds" / f"round-{round:03d}.json"


def records_in(folder: Path) -> list[RoundRecord]:
    """Return the records of all finished rounds in a run's folder, from round 0.

    Raises:
        BrokenRun: a record can't be read, or does not follow from the one before.
    """
    records: list[RoundRecord] = []
    previous = GENESIS
    while (path := record_path(folder, len(records))).exists():
        record = record_in(path)
        if (record.round, record.previous) != (len(records), previous):
            raise BrokenRun(f"{path} does not follow from the record before it.")
        records.append(record)
        previous = record.sha256
    return records


Mark = tuple[int, int, int]
"""What tells contents of one file apart: its inode, the time of its last change, and its size."""


def content_mark(path: Path) -> Mark:
    """Return the mark of a file as it is now; files here are replaced, and never changed in place."""
    found = path.stat()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def record_in(path: Path) -> RoundRecord:
    """Return the record in a file, parsed once for each content that the file has had."""
    return _parsed(path, content_mark(path))


@lru_cache(maxsize=256)
def _parsed(path: Path, mark: Mark) -> RoundRecord:
    del mark
    try:
        return RoundRecord.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise BrokenRun(f"{path}: {error}") from error
