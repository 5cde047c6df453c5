"""Ed25519 identities: every statement that crosses between a hospital and the coordinator is signed."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from models.files import private_folder

Roster = Mapping[str, str]
"""Public keys by the name of the signer, in hexadecimal."""


class BadSignature(ValueError):
    """A statement is not what its signer signed, or its signer is not on the roster."""


def canonical(statement: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return the canonical JSON text of plain values: sorted keys, no spaces, no NaN.

    >>> canonical({"b": 1, "a": [2.5, None]})
    b'{"a":[2.5,null],"b":1}'
    """
    text = json.dumps(
        statement, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode()


def secret_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the secret in `path`, made by `make` on first use and readable only by its owner.

    Two processes that make it at the same time use the same one. A crash leaves none or a whole one.
    """
    if not path.exists():
        private_folder(path.parent)
        descriptor, partial = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(partial, path)
        os.unlink(partial)
    return path.read_bytes()


def private_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in `path`, made on first use."""
    return Ed25519PrivateKey.from_private_bytes(
        secret_file(path, lambda: Ed25519PrivateKey.generate().private_bytes_raw())
    )


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return the public half of `key`, in the form of the roster."""
    return key.public_key().public_bytes_raw().hex()


def sign(statement: Mapping[str, Any], signer: str, key: Ed25519PrivateKey) -> bytes:
    """Return the signed statement as the bytes of a JSON file."""
    signature = key.sign(canonical(statement)).hex()
    return canonical({"statement": statement, "signer": signer, "signature": signature})


def verified(data: bytes, signer: str, roster: Roster) -> dict[str, Any]:
    """Return the statement in `data` if `signer` signed it with the signer's key on the roster.

    Raises:
        BadSignature: it is anything else; the message names the reason.
    """
    if signer not in roster:
        raise BadSignature(f"{signer!r} is not on the roster.")
    try:
        envelope = json.loads(data.decode())  # in UTF-8 alone, as it is passed on
        statement = envelope["statement"]
        signature = bytes.fromhex(envelope["signature"])
        named = envelope["signer"]
        content = canonical(statement)
        if not isinstance(statement, dict):
            raise TypeError("expected an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadSignature(f"The statement of {signer!r} is malformed: {error!r}.") from error
    if named != signer:
        raise BadSignature(f"Expected a statement of {signer!r}, got one of {named!r}.")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(roster[signer])).verify(signature, content)
    except InvalidSignature as error:
        raise BadSignature(f"The signature of {signer!r} does not fit its statement.") from error
    return dict(statement)


def verified_by_any(data: bytes, signer: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return the statement in `data` if `signer` signed it with one of its public keys.

    Raises:
        BadSignature: none of them signed it; the message names the reason for the last key.
    """
    if not keys:
        raise BadSignature(f"{signer!r} has no key.")
    for key in keys[:-1]:
        with suppress(BadSignature):
            return verified(data, signer, {signer: key})
    return verified(data, signer, {signer: keys[-1]})
