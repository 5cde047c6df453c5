"""Hospital: a folder with a policy, the data and private state, for code that runs at that hospital.

Most commands look at its books alone, so what reads scans, which needs torch, is imported where it is
used.
"""

import fcntl
import hmac
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.files import private_folder, write_atomically
from privacy.ledger import Ledger
from privacy.noise.source import NoiseSource
from privacy.signing import BadSignature, canonical, private_key, public_hex, verified_by_any
from privacy.statements import Noise
from sites.exchange.outbox import Outbox
from sites.exchange.places import Place
from sites.listing.cases import CaseFiles, Listing
from sites.listing.listing import EXCLUDED, excluded_patients, read_listing
from sites.listing.pseudonyms import Eligible, Split, eligible, pseudonym, pseudonym_key
from sites.policy.policy import Policy, Refused, load_policy
from sites.policy.security_log import SecurityLog
from sites.yaml_files import ConfigError

if TYPE_CHECKING:
    import torch

    from models.settings.images import PreprocessingConfig
    from models.settings.tasks import TaskConfig
    from sites.cohort import Cohort
    from sites.imaging.checks import CheckedCase
    from sites.study import Study

log = logging.getLogger("wardround.site")


@dataclass(frozen=True)
class Hospital:
    """A hospital's folder and policy. `test_noise` seeds repeatable noise, at made-up hospitals only."""

    folder: Path
    policy: Policy
    test_noise: int | None = None

    @classmethod
    def open(cls, folder: Path, test_noise: int | None = None) -> "Hospital":
        """Open the hospital in `folder`.

        Raises:
            ConfigError: the policy is wrong, or repeatable noise was asked for at a hospital with real
            patients.
        """
        policy = load_policy(folder)
        if test_noise is not None and not policy.phantom:
            raise ConfigError(
                f"{folder / 'site.yaml'}: phantom: expected true for repeatable noise, got false. "
                f"Noise for real patients comes only from the system's entropy; leave out test noise."
            )
        return cls(folder, policy, test_noise)

    @property
    def name(self) -> str:
        """The hospital's name, as its policy states it."""
        return self.policy.name

    @property
    def state(self) -> Path:
        """The hospital's private folder: ledger, outbox, teachers, keys."""
        return self.folder / "state"

    def close_state(self) -> None:
        """Make `state/`, or close it, for its owner alone: it holds teachers, keys and the ledger."""
        private_folder(self.state)
        self.state.chmod(0o700)

    @cached_property
    def ledger(self) -> Ledger:
        """The hospital's ledger."""
        return Ledger(
            self.state / "ledger.sqlite",
            self.policy.budget,
            owner=hmac.new(self.pseudonym_key, b"ledger", sha256).hexdigest(),
            rule=self.policy.rule,
            allow_plain=self.policy.plain_studies == "allow",
        )

    @property
    def security_log(self) -> SecurityLog:
        """The hospital's log of security events."""
        return SecurityLog(self.state / "security", self.policy.security_log_days)

    @property
    def outbox(self) -> Outbox:
        """The hospital's outbox."""
        return Outbox(self.state / "outbox")

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        """The hospital's private key, made on first use."""
        return private_key(self.state / "keys" / "hospital")

    @property
    def public_key(self) -> str:
        """The public key that the roster lists for this hospital."""
        return public_hex(self.key)

    def renew_key(self) -> str:
        """Replace the private key by a new one and return its public key.

        The public key of the old one is stored, so that older statements can still be verified.
        """
        keys, former = self.state / "keys", self.public_key
        write_atomically(keys / "former" / f"{former}.pub", b"")
        (keys / "hospital").unlink()
        return public_hex(private_key(keys / "hospital"))

    def verified(self, data: bytes) -> dict[str, Any]:
        """Return the statement in `data` if this hospital signed it, with its present or a former key.

        Raises:
            BadSignature: this hospital did not sign it.
        """
        return verified_by_any(data, self.name, self.keys[::-1])

    @property
    def keys(self) -> tuple[str, ...]:
        """The public keys of this hospital, the present one first."""
        former = sorted(path.stem for path in (self.state / "keys" / "former").glob("*.pub"))
        return (self.public_key, *former)

    def wrote(self, data: bytes, place: Place) -> bool:
        """Return whether a file is a statement of this hospital, by any of its keys, about a place."""
        with suppress(BadSignature):
            return Place.of_statement(self.verified(data)) == place
        return False

    @property
    def device(self) -> "torch.device":
        """The device on which this hospital trains; on a GPU nothing runs in TF32 from then on."""
        import torch

        device = self.policy.device
        torch.backends.cudnn.allow_tf32 = False  # too coarse for the clip norm's bound
        return torch.device("cpu" if device.kind == "cpu" else f"{device.kind}:{device.index}")

    @property
    def data(self) -> Path:
        """The folder with the hospital's scans and their list."""
        return self.folder / self.policy.data

    @property
    def public(self) -> Path:
        """The folder with the image sets that this hospital calls public."""
        return self.folder / "public"

    @property
    def listing(self) -> Listing:
        """All cases in the hospital's list in the terms of studies, withdrawn patients included."""
        return read_listing(self.data).mapped(self.policy.channels, self.policy.label_map)

    @property
    def cases(self) -> list[CaseFiles]:
        """The listed cases of the patients who have not withdrawn (`excluded.csv`)."""
        named = excluded_patients(self.folder / EXCLUDED)
        gone = {pseudonym(self.pseudonym_key, patient) for patient in named}
        known = {case: pseudonym(self.pseudonym_key, case.patient) for case in self.listing.cases}
        if gone - set(known.values()):
            log.warning("%s names a patient who is not in the list of scans", EXCLUDED)
        # a patient who is listed both by name and as imported gets one name here
        name_of = {pseudo: case.patient for case, pseudo in reversed(known.items())}
        return [
            replace(case, patient=name_of[pseudo])
            for case, pseudo in known.items()
            if pseudo not in gone
        ]

    @property
    def current(self) -> Listing:
        """The list without the patients who have withdrawn."""
        return replace(self.listing, cases=tuple(self.cases))

    @property
    def data_sha256(self) -> str:
        """The hash of the list of scans, and of the size and modification time of each file."""
        rows = []
        for case in sorted(self.cases, key=lambda case: (case.case, case.session)):
            files = [self.data / name.partition("#")[0] for name in case.files]
            marks = [(f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
            meaning = [
                sorted(case.images.items()), case.label, case.label_map, case.label_names, case.masks
            ]  # fmt: skip
            rows.append([case.case, case.patient, *meaning, case.session, marks])
        return sha256(canonical(rows)).hexdigest()

    @property
    def everybody(self) -> frozenset[str]:
        """All patients who are listed or have an account in the ledger, those who withdrew included."""
        listed = {pseudonym(self.pseudonym_key, case.patient) for case in self.listing.cases}
        return self.ledger.patients() | listed

    @property
    def eligible(self) -> Eligible:
        """The patients who may take part in an event, whatever their images show."""
        return eligible(self.cases, self.split, self.pseudonym_key)

    @property
    def split(self) -> Split:
        """The rule by which patients train or evaluate."""
        return Split(self.policy.evaluation_fraction, self.ledger.trained())

    @property
    def pseudonym_key(self) -> bytes:
        """The secret key of the patients' keyed hashes."""
        return pseudonym_key(self.state)

    def checked_cases(self, task: "TaskConfig", config: "PreprocessingConfig") -> "list[CheckedCase]":
        """Return every case, read and checked; cases in the cache are not read again."""
        from sites.imaging.cache import ScanCache
        from sites.imaging.checks import read_cases
        from sites.imaging.reading import unlabelled_reader

        if self.listing.is_unlabelled:
            return read_cases(self.cases, unlabelled_reader(self.data, task))
        cache = ScanCache(self.state / "cache", self.policy.cache_mb * 2**20)
        checked = read_cases(self.cases, cache.reader(self.data, task, config))
        cache.trim()
        return checked

    def cohort(self, study: "Study") -> "Cohort":
        """Return the hospital's patients as a study reads their scans."""
        from sites.cohort import load_cohort

        cases = self.checked_cases(study.task, study.preprocessing)
        return load_cohort(cases, self.policy, self.pseudonym_key, self.split)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the hospital's lock: two processes at once would mix their files and charges."""
        private_folder(self.state)
        with (self.state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def noise(self, purpose: str) -> tuple[NoiseSource, Noise]:
        """Return a source of noise for one purpose, and the name of that source in a manifest."""
        if self.test_noise is None:
            return NoiseSource.from_system(), "system"
        return NoiseSource.for_test(self.test_noise, f"{self.name} {purpose}"), "test"

    def stored(self, kind: str, run: str, round: int) -> Path:
        """Return the path of the parameters of a kind after a round; these files never leave."""
        return self.state / kind / run / f"{round:03d}.safetensors"

    @property
    def drained(self) -> Path:
        """The path of a file that exists while the hospital accepts no orders."""
        return self.state / "drained"

    def scored(self, run: str, round: int) -> Path:
        """Return the path of the metrics of the models after a round, for the hospital's own use."""
        return self.state / "scores" / run / f"{round:03d}.json"

    def trust(self, coordinator: str) -> None:
        """Raise `Refused` unless `coordinator` is the public key that this hospital trusts.

        It trusts the key in its policy. Without one it stores the key of the first contact.
        """
        if known := self.policy.coordinator:
            if known.key != coordinator:
                raise Refused("the coordinator's key is not the one in the hospital's site.yaml")
            return
        path = self.state / "keys" / "coordinator.pub"
        if not path.exists():
            private_folder(path.parent)
            write_atomically(path, coordinator.encode())
        if path.read_text() != coordinator:
            raise Refused(
                "the coordinator's key is not the one that this hospital knows; if the coordinator has "
                "a new key, the hospital deletes state/keys/coordinator.pub"
            )

    @property
    def exchanges(self) -> frozenset[str]:
        """The addresses of the exchanges of all runs that this hospital has stored."""
        paths = (self.state / "runs").glob("*.json")
        return frozenset(json.loads(path.read_bytes())["exchange"] for path in paths)

    def remember(self, run: str, study: "Study") -> None:
        """Store a run's study, for people who look at its models at this hospital."""
        path = self.state / "studies" / f"{run}.json"
        if not path.exists():
            write_atomically(path, canonical(study.model_dump(mode="json")))

    def known_runs(self) -> "dict[str, Study]":
        """Return the stored studies by name of their run."""
        from sites.study import Study

        paths = (self.state / "studies").glob("*.json")
        return {path.stem: Study.model_validate_json(path.read_bytes()) for path in paths}

    def bind(self, run: str, study_sha256: str, exchange: str) -> None:
        """Store a run's study and exchange on first contact; raise `Refused` if they differ later."""
        path = self.state / "runs" / f"{run}.json"
        terms = canonical({"study_sha256": study_sha256, "exchange": exchange})
        if not path.exists():
            write_atomically(path, terms)
        if path.read_bytes() != terms:
            raise Refused("this run began here with another study or another exchange")
