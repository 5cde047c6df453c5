"""Download of public sets: resumed after an interruption, kept only if the checksum is right."""

import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest, md5
from pathlib import Path

import httpx

from sites.yaml_files import ConfigError

PART = 2**20
TRIES = 5
Progress = Callable[[int, int | None], None]
"""Function of `(bytes so far, total bytes)`; the total is None if the server does not state it."""


class DownloadFailed(ConfigError):
    """A file could not be downloaded or unpacked; a part that arrived before a break is kept."""


@dataclass(frozen=True)
class Source:
    """A file on the web with the MD5 that its publisher states, which does not stop an attacker."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return httpx.URL(self.url).path.rpartition("/")[2]


def fetch(source: Source, folder: Path, progress: Progress, wait_s: float = 1.0) -> Path:
    """Return the path of the file of `source` in `folder`; download it unless it is there.

    An interrupted download continues where it stopped, in the next try or the next call.

    Args:
        wait_s: wait before the second try; before each later try the wait is twice as long.

    Raises:
        DownloadFailed: the server can't be reached, refuses, or has another file.
    """
    whole = folder / source.name
    if whole.exists() and _md5(whole) == source.md5:
        return whole
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{source.name}.part"
    for attempt in range(TRIES):
        try:
            _go_on(source, part, progress)
            break
        except httpx.TransportError as error:
            if attempt == TRIES - 1:
                raise DownloadFailed(
                    f"{source.url}: the connection broke {TRIES} times ({type(error).__name__}). "
                    f"Run the same command again to continue."
                ) from error
            time.sleep(wait_s * 2**attempt)
    if _md5(part) != source.md5:
        part.unlink()
        raise DownloadFailed(
            f"{source.url}: expected a file with the MD5 {source.md5}, got another one. It was deleted; "
            f"try again, or download the file yourself and pass it with --from."
        )
    part.replace(whole)
    return whole


def _go_on(source: Source, part: Path, progress: Progress) -> None:
    """Append the missing bytes to `part`; start from the beginning if the server can't send a part."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", source.url, headers=headers, follow_redirects=True, timeout=30) as reply:
        if reply.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # no bytes are missing; the checksum decides
        if reply.status_code >= httpx.codes.BAD_REQUEST:
            raise DownloadFailed(f"{source.url}: the server answers {reply.status_code}.")
        if reply.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            for data in reply.iter_raw(PART):
                file.write(data)
                have += len(data)
                progress(have, total)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, partial(md5, usedforsecurity=False)).hexdigest()


def unpacked(archive: Path) -> Path:
    """Return the only folder in a tar archive; unpack it beside the archive unless it is there.

    Raises:
        DownloadFailed: the archive holds anything but one folder, or a path that leads out of it.
    """
    into = archive.with_suffix(".partial")
    shutil.rmtree(into, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            folder = archive.parent / _top(tar)
            if folder.exists():
                return folder
            tar.extractall(into, filter="data")
        (into / folder.name).rename(folder)
        return folder
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DownloadFailed(f"{archive}: expected an archive of one folder: {error}") from error
    finally:
        shutil.rmtree(into, ignore_errors=True)


def _top(tar: tarfile.TarFile) -> str:
    """Return the name of the only folder in an archive; files that macOS adds are ignored."""
    names = {member.name.removeprefix("./").split("/")[0] for member in tar.getmembers()}
    tops = {name for name in names if name and name != "." and not name.startswith("._")}
    if len(tops) != 1 or ".." in tops:
        raise ValueError(f"it contains {sorted(tops)[:3]}")
    return tops.pop()
