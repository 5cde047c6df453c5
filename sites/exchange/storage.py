"""Storage of an exchange: files are written once, read up to a size limit, and listed.

`https://` is WebDAV on the coordinator's web server. `sftp://` is a folder on an SSH server whose key is
in `~/.ssh/known_hosts`. Any other address is a folder or a URL that fsspec supports. Every failure to
reach the storage raises an OSError.
"""

import os
import posixpath
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

import httpx
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from paramiko import HostKeys, MissingHostKeyPolicy, PKey, SSHClient
from paramiko.ssh_exception import SSHException
from webdav4.client import Client, ClientError, HTTPError, ResourceAlreadyExists, ResourceNotFound

from models.errors import CorruptCheckpoint, WaitAndRepeat
from models.files import sha256_of, sha256_of_file

AUTH = "WARDROUND_EXCHANGE_AUTH"
"""Environment variable with `name:password@host`, or `...@host:port`, for an exchange over HTTPS."""

PIECE = 2**20
"""Bytes of a file that are in memory at a time."""
TIMEOUT_S = 60
"""Seconds that one read or write on the connection may block; a whole transfer may take longer."""

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class StorageFailed(WaitAndRepeat, OSError):
    """The storage could not be reached, or rejected the request; a later attempt may succeed.

    `status` is the HTTP status with which it answered, None if it did not answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Sink(Protocol):
    """What takes bytes: a file, a hash with a name for it."""

    def write(self, data: bytes, /) -> object:
        """Take more bytes."""
        ...


@dataclass(frozen=True)
class Source:
    """The bytes of a file to write, in memory or in a local file that is read piece by piece."""

    data: bytes | None = None
    path: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the bytes."""
        return sha256_of_file(self.path) if self.path else sha256_of(self.data or b"")

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.path.stat().st_size if self.path else len(self.data or b"")

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the bytes as a file."""
        with self.path.open("rb") if self.path else BytesIO(self.data or b"") as file:
            yield file


def read(storage: "Storage", name: str, max_bytes: int) -> bytes:
    """Return a file's bytes; raises as `Storage.read_into` does."""
    sink = BytesIO()
    storage.read_into(sink, name, max_bytes)
    return sink.getvalue()


class Storage(Protocol):
    """Store of files by name; a name contains its folders, separated by slashes."""

    def read_into(self, sink: Sink, name: str, max_bytes: int) -> None:
        """Write a file's bytes to `sink`, a piece at a time.

        Raises:
            FileNotFoundError: there is no such file.
            CorruptCheckpoint: it is no file, or larger than `max_bytes`; the rest is not read.
        """
        ...

    def write_new(self, name: str, source: Source) -> None:
        """Write a complete file or nothing; raise FileExistsError if there already is one."""
        ...

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder; empty if there is no such folder."""
        ...


def storage_at(url: str) -> Storage:
    """Return the storage at an address.

    Raises:
        ValueError: this kind of storage is not supported, or a password would be sent unencrypted.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return Webdav(_client(url))
    if parts.scheme == "http":
        raise ValueError(f"expected https, got {url!r}: passwords and releases need TLS")
    if parts.scheme == "sftp":
        return Sftp(url)
    try:
        return Filesystem(*url_to_fs(url))
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"no storage at this address: {error}") from error


@dataclass(frozen=True)
class Filesystem:
    """A folder `root` on any filesystem that fsspec supports."""

    filesystem: AbstractFileSystem
    root: str

    def read_into(self, sink: Sink, name: str, max_bytes: int) -> None:
        """Write a file's bytes to `sink`; see `Storage`."""
        path = posixpath.join(self.root, name)
        about = self.filesystem.info(path)
        if about["type"] != "file" or about["size"] > max_bytes:
            raise _too_large(name, max_bytes)
        left = max_bytes
        with self.filesystem.open(path, "rb") as file:
            while data := file.read(min(PIECE, left + 1)):
                left -= len(data)
                if left < 0:
                    raise _too_large(name, max_bytes)
                sink.write(data)

    def write_new(self, name: str, source: Source) -> None:
        """Write a file under a partial name and give it its own, if that is free; see `Storage`.

        Of two writers at once, one fails: a local name is a new hard link, over SFTP a rename without
        replacement (https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02#section-6.5).
        Other storages have the exclusive creation that fsspec gives them.
        """
        path = posixpath.join(self.root, name)
        if self.filesystem.exists(path):
            raise FileExistsError(name)
        self.filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
        kind = self.filesystem.protocol
        rename = _RENAMES.get(kind if isinstance(kind, str) else kind[0])
        if rename is None:
            with source.opened() as file:
                self.filesystem.pipe_file(path, file.read(), mode="create")
            return
        partial = posixpath.join(posixpath.dirname(path), f".{token_hex(8)}.partial")
        with source.opened() as file, self.filesystem.open(partial, "wb") as copy:
            shutil.copyfileobj(file, copy, PIECE)
        try:
            rename(self.filesystem, partial, path)
        except OSError as error:
            self.filesystem.rm_file(partial)
            if self.filesystem.exists(path):
                raise FileExistsError(name) from error
            raise

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder; see `Storage`."""
        try:
            found = self.filesystem.ls(posixpath.join(self.root, folder), detail=True)
        except FileNotFoundError:
            return set()
        return {posixpath.basename(each["name"]) for each in found if each["type"] == "file"}


def _link(_: AbstractFileSystem, partial: str, path: str) -> None:
    os.link(partial, path)
    Path(partial).unlink()


_RENAMES: Mapping[str, Callable[[AbstractFileSystem, str, str], None]] = {
    "file": _link,
    "sftp": lambda filesystem, partial, path: filesystem.ftp.rename(partial, path),
}
"""Functions that rename a file and fail if the new name is taken, by fsspec's protocol."""


@dataclass
class Sftp:
    """A folder on an SSH server; the next call reopens a lost connection."""

    url: str
    _open: Filesystem | None = None

    def read_into(self, sink: Sink, name: str, max_bytes: int) -> None:
        """Write a file's bytes to `sink`; see `Storage`."""
        with self._connected() as folder:
            folder.read_into(sink, name, max_bytes)

    def write_new(self, name: str, source: Source) -> None:
        """Write a file under a partial name and rename it; see `Storage`."""
        with self._connected() as folder:
            folder.write_new(name, source)

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder; see `Storage`."""
        with self._connected() as opened:
            return opened.names(folder)

    @contextmanager
    def _connected(self) -> Iterator[Filesystem]:
        try:
            if self._open is None:
                known = _KnownHosts()
                opened = url_to_fs(self.url, host_key_policy=known, skip_instance_cache=True)
                self._open = Filesystem(*opened)
            yield self._open
        except (FileNotFoundError, FileExistsError, PermissionError):
            raise
        except (SSHException, EOFError, OSError) as error:
            self._open = None
            raise StorageFailed(f"the exchange can't be reached: {type(error).__name__}") from error


@dataclass(frozen=True)
class Webdav:
    """A folder on a WebDAV server.

    A file is uploaded under a partial name and moved to its final name, which must be free. The server
    that `deploy/` sets up allows nothing else.
    """

    client: Client

    def read_into(self, sink: Sink, name: str, max_bytes: int) -> None:
        """Write a file's bytes to `sink`; see `Storage`."""
        url = self.client.join_url(name)
        with _as_os_errors(), self.client.http.stream("GET", url) as reply:
            if reply.status_code == httpx.codes.NOT_FOUND:
                raise FileNotFoundError(name)
            reply.raise_for_status()
            left = max_bytes
            for chunk in reply.iter_raw():  # without decompression, so the size limit holds
                left -= len(chunk)
                if left < 0:
                    raise _too_large(name, max_bytes)
                sink.write(chunk)

    def write_new(self, name: str, source: Source) -> None:
        """Upload a file under a partial name and move it to `name`; see `Storage`."""
        partial = partial_of(name, source)
        with _as_os_errors(), source.opened() as file:
            self.client.upload_fileobj(file, partial, overwrite=True, size=source.size)
            self.client.move(partial, name, overwrite=False)

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder; see `Storage`."""
        try:
            with _as_os_errors():
                found = self.client.ls(f"{folder}/", detail=True)
        except FileNotFoundError:
            return set()
        return {
            posixpath.basename(str(each["name"]))
            for each in found
            if isinstance(each, dict) and each["type"] == "file"
        }


class _KnownHosts(MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko is not typed
    """Policy that accepts only servers whose key is in `~/.ssh/known_hosts`, as ssh does."""

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
        """Raise SSHException unless the key is known; paramiko calls this for keys it has not loaded."""
        del client
        path = Path.home() / ".ssh" / "known_hosts"
        known = HostKeys(str(path)) if path.exists() else HostKeys()
        if not known.check(hostname, key):
            raise SSHException(f"expected the key of {hostname} in {path}, found none")


def partial_of(name: str, source: Source) -> str:
    """Return the name of a file while it is written: its final name with a hash of its content.

    >>> partial_of("objects/a", Source(b""))
    'objects/a.e3b0c44298fc.partial'
    """
    return f"{name}.{source.sha256[:12]}.partial"


def credential_for(host: str) -> tuple[str, str] | None:
    """Return the name and password for a host, None if those that are set are for another.

    A hospital also reads the exchanges of earlier coordinators: none of them gets another's password.

    Args:
        host: with its port, as an address has it: `hub.example.org`, `hub.example.org:8443`.

    Raises:
        ValueError: the variable names no host; the text does not show the password.
    """
    auth = os.environ.get(AUTH)
    if not auth:
        return None
    account, _, named = auth.rpartition("@")
    name, colon, password = account.partition(":")
    if not (name and colon and named):
        raise ValueError(f"expected name:password@host in {AUTH}, got another text")
    return (name, password) if named.lower() == host.lower() else None


def _client(url: str) -> Client:
    return Client(
        url,
        auth=credential_for(urlsplit(url).netloc.rpartition("@")[2]),
        retry=False,
        timeout=TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},
    )


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Convert every error of a server to an OSError; no message names the server."""
    try:
        yield
    except ResourceNotFound as error:
        raise FileNotFoundError(error.path) from error
    except ResourceAlreadyExists as error:
        raise FileExistsError(error.path) from error
    except HTTPError as error:
        status = error.status_code
        raise StorageFailed(f"the exchange answered {status}", status) from error
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise StorageFailed(f"the exchange answered {status}", status) from error
    except (ClientError, httpx.HTTPError) as error:
        raise StorageFailed(f"the exchange can't be reached: {type(error).__name__}") from error


def _too_large(name: str, max_bytes: int) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"Expected a file of at most {max_bytes:,} bytes at {name}.")
