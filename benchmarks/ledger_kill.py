"""Kill a hospital's round again and again; count what its ledger lost, doubled or broke.

A child process carries out real rounds (real ledger, outbox, exchange; a tiny network) and is killed
with SIGKILL: first once at every file write, flush, rename and ledger statement of a round, one by
one, then at random instants. After each kill the ledger is opened and compared with the exchange; then
the round is ordered again until it is finished.

    python benchmarks/ledger_kill.py --kills 200 --json
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import checkpoints
from models import params as P
from models.files import sha256_of
from privacy import ledger as ledger_module
from privacy import ledger_file
from privacy.ledger import LedgerError
from privacy.signing import public_hex, sign
from privacy.statements import ModelManifest
from sites.datasets.phantoms import Scanner, make_wards
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.orders import Order
from sites.protocol.dispatch import carry_out
from sites.study import Study

RUN = "kills-1"
STUDY = Study.model_validate(
    {
        "name": "kills",
        "task": {"kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}},
        "network": {"name": "UNet", "channels": [2, 4]},
        "rounds": 1000,
        "sites": {"min": 1},
        "preprocessing": {"shape": [8, 8, 8]},
        "training": {"steps": 1, "lr": 0.1, "lot": "all"},
        "privacy": {
            "mode": "local", "unit": "patient", "epsilon": 900, "delta": 1e-3,
            "clip": {"kind": "normalised", "norm": 1.0},
        },
        "export": "weights",
        "strategy": {"name": "fed_avg"},
    }
)  # fmt: skip


@dataclass
class Counts:
    """The number of kills, and of what went wrong because of them."""

    kills: int = 0
    under_counts: int = 0
    double_charges: int = 0
    chain_failures: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class Scene:
    """A made-up hospital, an exchange, and the coordinator's key."""

    ward: Path
    exchange: Exchange
    key: Ed25519PrivateKey

    def publish_model(self, round: int) -> None:
        """Publish the global model from which `round` starts."""
        torch.manual_seed(0)
        data = checkpoints.to_bytes(P.of(STUDY.network.build(3, 3)))
        manifest = ModelManifest(
            kind="model", study=STUDY.name, study_sha256=STUDY.sha256, run=RUN, round=round - 1,
            model_sha256=sha256_of(data), chain_head="0" * 64,
        )  # fmt: skip
        self.exchange.put_object(data, "coordinator")
        signed = sign(manifest.model_dump(mode="json"), "coordinator", self.key)
        self.exchange.put_statement(Place.model(RUN, round - 1), signed)

    def contribute(self, round: int) -> None:
        """Carry out a round, as the hospital's process does."""
        order = Order(
            phase="contribute", site=self.ward.name, study=STUDY, run=RUN, round=round, attempt=1,
            exchange=self.exchange.url, coordinator=public_hex(self.key),
        )  # fmt: skip
        carry_out(Hospital.open(self.ward, test_noise=1), order, lambda *_: None)

    def statement(self, round: int) -> bytes | None:
        """Return the statement that the hospital published for a round, None if there is none."""
        return self.exchange.statement(Place.statement(RUN, round, "contribute", "north"))


def set_scene(folder: Path) -> Scene:
    """Make the hospital, with a budget that outlasts the kills."""
    scanner = Scanner("north", 6, (20, 300, 620, 480), 30, "RAS")
    (ward,) = make_wards(folder / "wards", 0, [scanner])
    policy = yaml.safe_load((ward / "site.yaml").read_text())
    policy |= {"min_patients": 1, "budget": {"epsilon": 1000.0, "delta": 1e-3}}
    (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    return Scene(ward, Exchange(str(folder / "exchange")), Ed25519PrivateKey.generate())


def fail_at(point: int) -> None:
    """Arrange that this process is killed at its `point`-th write, flush, rename or ledger entry."""
    passed = 0

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return wrapper

    of_os: list[tuple[object, str]] = [(os, n) for n in ("fsync", "replace", "link", "unlink", "open")]
    for owner, name in [*of_os, (ledger_module, "append")]:
        setattr(owner, name, counted(getattr(owner, name)))
    vars(ledger_file)["sqlite3"] = _CountingSqlite(counted)


class _CountingSqlite:
    """The sqlite3 module, with a failpoint before each statement that the ledger executes."""

    DatabaseError = sqlite3.DatabaseError
    Connection = sqlite3.Connection

    def __init__(self, counted: Callable[..., Any]) -> None:
        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> sqlite3.Cursor:
                cursor: sqlite3.Cursor = counted(super().execute)(*arguments)
                return cursor

            def executemany(self, *arguments: Any) -> sqlite3.Cursor:
                cursor: sqlite3.Cursor = counted(super().executemany)(*arguments)
                return cursor

        self._kind = Connection

    def connect(self, *arguments: Any, **named: Any) -> sqlite3.Connection:
        return sqlite3.connect(*arguments, **named, factory=self._kind)


def check(scene: Scene, round: int, counts: Counts) -> None:
    """Compare the ledger with the exchange after a kill."""
    try:
        entries = Hospital.open(scene.ward).ledger.entries()
    except LedgerError:
        counts.chain_failures += 1
        return
    for number in range(1, round + 1):
        mine = [e for e in entries if e.charge.round == number]
        reserved = sum(e.action == "reserve" for e in mine)
        voided = sum(e.action == "void" for e in mine)
        counts.double_charges += max(0, reserved - voided - 1)
        data = scene.statement(number)
        if data is not None:
            settled = {e.file for e in mine if e.action == "settle"}
            is_paid = reserved > voided and sha256_of(data) in settled
            counts.under_counts += not is_paid


def run(random_kills: int, failpoints: int, seed: int) -> Counts:
    """Kill at up to `failpoints` writes of one round, then at random; return the counts."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        scene = set_scene(Path(folder))
        point = 1  # the first round, killed once at each of its writes
        while point <= failpoints and not attempt(scene, 1, counts, point=point):
            point += 1
        started = time.monotonic()
        attempt(scene, 2, counts)
        usual = time.monotonic() - started
        rng, wanted, round = random.Random(seed), counts.kills + random_kills, 3
        while counts.kills < wanted:
            if attempt(scene, round, counts, after_s=rng.uniform(0, 1.5 * usual)):
                round += 1
        counts.rounds = round
    return counts


def attempt(
    scene: Scene, round: int, counts: Counts, point: int = 0, after_s: float | None = None
) -> bool:
    """Carry a round out in a child that is killed at a point or a time; return whether it survived."""

    def child() -> None:
        torch.set_num_threads(1)
        if point:
            fail_at(point)
        scene.contribute(round)

    scene.publish_model(round)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    if after_s is not None:
        process.join(after_s)
        process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"The round failed by itself, exit code {process.exitcode}.")
    counts.kills += process.exitcode != 0
    check(scene, round, counts)
    return process.exitcode == 0


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills at random instants")
    parser.add_argument("--failpoints", type=int, default=10**6, help="at most so many before them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts = run(arguments.kills, arguments.failpoints, arguments.seed)
    print(json.dumps(vars(counts)) if arguments.json else counts)


if __name__ == "__main__":
    main()
