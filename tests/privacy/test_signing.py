import json
import stat
from pathlib import Path

import pytest

from privacy.signing import BadSignature, private_key, public_hex, sign, verified, verified_by_any

STATEMENT = {"kind": "test", "round": 3, "values": [1.5, None]}


def test_a_signed_statement_is_read_back(tmp_path: Path) -> None:
    key = private_key(tmp_path / "keys" / "k")
    data = sign(STATEMENT, "north", key)
    assert verified(data, "north", {"north": public_hex(key)}) == STATEMENT


def test_a_statement_counts_by_any_of_its_signers_keys_and_by_no_other(tmp_path: Path) -> None:
    keys = [private_key(tmp_path / name) for name in "abc"]
    a, b, _ = map(public_hex, keys)
    for key in keys[:2]:
        assert verified_by_any(sign(STATEMENT, "north", key), "north", [a, b]) == STATEMENT
    for known in ([a, b], []):
        with pytest.raises(BadSignature):
            verified_by_any(sign(STATEMENT, "north", keys[2]), "north", known)


def test_a_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "k"
    assert public_hex(private_key(path)) == public_hex(private_key(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_anything_else_than_what_was_signed_is_refused(tmp_path: Path) -> None:
    key, other = private_key(tmp_path / "a"), private_key(tmp_path / "b")
    roster = {"north": public_hex(key), "south": public_hex(other)}
    data = sign(STATEMENT, "north", key)
    changed = json.loads(data)
    changed["statement"]["round"] = 4
    for tampered, signer in [
        (json.dumps(changed).encode(), "north"),
        (sign(STATEMENT, "north", other), "north"),
        (data, "south"),
        (data, "west"),
        (b"no json", "north"),
        (b"[]", "north"),
        (b"[" * 200_000, "north"),
        (sign(5, "north", key), "north"),
        (sign("abc", "north", key), "north"),
        (data.replace(b'"signature":"', b'"signature":"zz'), "north"),
    ]:
        with pytest.raises(BadSignature):
            verified(tampered, signer, roster)
