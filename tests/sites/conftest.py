"""A hospital with made-up patients, and a coordinator that orders and reads what it answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from coordinator import Coordinator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.study import Study


@pytest.fixture
def hospital(tmp_path: Path, small_wards) -> Hospital:
    return Hospital.open(small_wards(tmp_path / "wards") / "east", test_noise=1)


@pytest.fixture
def coordinator_of(tmp_path: Path) -> Callable[[Study], Coordinator]:
    def make(study: Study) -> Coordinator:
        exchange = Exchange(str(tmp_path / "exchange"))
        return Coordinator(study, exchange, Ed25519PrivateKey.generate())

    return make
