"""Private training on several machines or GPUs of one hospital, through its own Dask cluster.

Each patient lies with one worker, whole, so clipping stays exact: a worker gets the parameters, clips
and adds up the gradients of its own patients, and returns one sum. The sums are rounded to a grid on
which adding is exact (`lot_sums.FINER`). So on like machines, with all patients in each step, the number
of workers changes no bit; where steps sample patients, other patients share a microbatch, whose float32
rounding differs. Noise, ledger and keys stay with the hospital's own process.

A worker that is lost, or never was there, costs time alone: the hospital's process sums the gradients of
that worker's patients itself. Workers hold prepared scans in an actor, which Dask neither copies nor
writes to disk, and frees when the hospital's process leaves, however that ends.

Dask's own messages are pickles: a machine of the cluster can run programs on all others, and in the
hospital's process. So it has to be trusted as the hospital's own, behind TLS.
"""

import ctypes
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.objectives import Task
from models.settings.images import PreprocessingConfig
from privacy.mechanisms import Mechanism
from sites.code_version import versions
from sites.imaging.preprocessing import Prepared
from sites.policy.cluster import ClusterConfig, connected, living, usable
from sites.training.config import TrainingConfig
from sites.training.examples import Drawn, Examples, prepare
from sites.training.lot_sums import LotSum, OwnSums, added

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("wardround.site")

LOOK_S = 2.0
"""Seconds between two looks at whether a worker still lives."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
BEGIN_S = 60.0
"""Seconds within which a worker has to be ready for a training."""


@dataclass(frozen=True)
class TrainingOnWorkers:
    """What a worker has to know of a training, beside its patients.

    Attributes:
        seed: seed of the random draws from a patient's scans.
        device: `cpu` or `cuda`, as in the hospital's policy; a worker uses the first GPU that it sees.
        threads: CPU threads of a worker.
        versions: those of the hospital's process, which a worker has to have, too.
    """

    network: nn.Module
    task: Task
    config: TrainingConfig
    preprocessing: PreprocessingConfig
    seed: int
    device: str
    threads: int
    versions: tuple[str, ...] = field(default_factory=versions)


@contextmanager
def spread(
    cluster: ClusterConfig, training: TrainingOnWorkers, patients: Sequence[Drawn], own: OwnSums
) -> Iterator["SpreadSums | OwnSums"]:
    """Yield sums that the workers of a cluster compute, or `own` if none can be reached."""
    try:
        client = connected(cluster)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        log.warning("the cluster %s can't be used; training alone: %s", cluster.scheduler, error)
        yield own
        return
    try:
        sums = SpreadSums(client, own)
        try:
            sums.begin(training, usable(client, cluster))
            sums.deal(patients, training.config.microbatch)
        except Exception as error:  # such as a scheduler that ends meanwhile
            log.warning("the cluster is lost; training alone: %s", type(error).__name__)
            sums = SpreadSums(client, own)
        yield sums
    finally:
        with suppress(Exception):  # the cluster has ended before
            client.close(timeout=LOOK_S)


@dataclass
class SpreadSums:
    """Sums of clipped gradients by the workers of a cluster (a `LotSums`).

    Attributes:
        held: by worker, the actor with its part of the training; a worker that is lost is not there.
        keepers: by worker, the numbers of the patients whom it has.
    """

    client: "Client"
    own: OwnSums
    held: dict[str, Any] = field(default_factory=dict)
    keepers: dict[str, list[int]] = field(default_factory=dict)

    def begin(self, training: TrainingOnWorkers, workers: Sequence[str]) -> None:
        """Get workers ready, without any scan yet."""
        asked = {
            worker: self.client.submit(
                HeldTraining, training, actor=True, pure=False, workers=[worker],
                allow_other_workers=False,
            )
            for worker in workers
        }  # fmt: skip
        for worker, future in asked.items():
            try:
                with self.client.as_current():
                    self.held[worker] = future.result(timeout=BEGIN_S)
            except OtherVersions as error:
                log.warning("worker %s gets no scan: %s", worker, error)
            except Exception as error:
                log.warning("worker %s gets no scan: %s", worker, type(error).__name__)
        if not self.held:
            log.warning("the cluster has no worker; training alone")

    def deal(self, patients: Sequence[Drawn], size: int) -> None:
        """Have the workers take turns at microbatches of `size` patients, in order, and keep them."""
        workers = list(self.held)
        for number, start in enumerate(range(0, len(patients), size) if workers else ()):
            worker = workers[number % len(workers)]
            if worker not in self.held:
                continue  # lost meanwhile
            mine = range(start, min(start + size, len(patients)))
            told = {i: _loaded(patients[i]) for i in mine}
            if self._answer(worker, self._ask(worker, "keep", told)) is not None:
                self.keepers.setdefault(worker, []).extend(mine)

    def __call__(
        self, network: nn.Module, patients: Sequence[int], step: int, mechanism: Mechanism
    ) -> LotSum:
        """Return the sum over `patients`; see `lot_sums.LotSums`."""
        weights = [p.detach().cpu().numpy() for p in network.parameters()]
        in_lot, asked = set(patients), {}
        for worker, kept in list(self.keepers.items()):
            if mine := [i for i in kept if i in in_lot]:
                asked[worker] = (self._ask(worker, "sums", weights, mine, step, mechanism), mine)
        parts = []
        for worker, (answer, mine) in asked.items():
            found = self._answer(worker, answer)
            if found is None:
                continue
            if not is_possible(found, network, len(mine), mechanism):
                self._lose(worker, "its sum is longer than its patients' could be, or of other shapes")
                continue
            parts.append(found.to(next(network.parameters()).device))
            in_lot.difference_update(mine)
        ours = self.own(network, [i for i in patients if i in in_lot], step, mechanism)
        return added([*parts, ours])

    def _ask(self, worker: str, what: str, *told: Any) -> Any:  # noqa: ANN401  # a future of Dask's
        """Begin a call; None if the worker is lost."""
        try:
            with self.client.as_current():
                return getattr(self.held[worker], what)(*told)
        except Exception as error:
            self._lose(worker, type(error).__name__)
            return None

    def _answer(self, worker: str, future: Any) -> Any:  # noqa: ANN401  # what the call returns
        """Return a call's result; None if its worker is lost, which keeps no patient from then on."""
        from distributed import TimeoutError as TooLate  # noqa: PLC0415  # an extra

        while future is not None:
            try:
                return future.result(timeout=LOOK_S)
            except TooLate:
                if worker not in living(self.client):
                    self._lose(worker, "it has left the cluster")
                    break
            except Exception as error:  # whatever it is, the hospital's own process does the work
                self._lose(worker, type(error).__name__)
                break
        return None

    def _lose(self, worker: str, why: str) -> None:
        log.warning("worker %s is lost: %s; its patients are trained here", worker, why)
        self.held.pop(worker, None)  # frees what it has, where it still lives
        self.keepers.pop(worker, None)


def is_possible(found: LotSum, network: nn.Module, patients: int, mechanism: Mechanism) -> bool:
    """Return whether a sum has the network's shapes, and no more than `patients` clipped gradients."""
    if not isinstance(found, LotSum) or abs(found.within) > patients / 2:
        return False
    if found.sums is None:
        return True
    shapes = [p.shape for p in network.parameters()]
    if [each.shape for each in found.sums] != shapes:
        return False
    length = float(torch.stack([each.double().norm() for each in found.sums]).norm())
    return length <= mechanism.clip.norm * patients  # false for NaN


class OtherVersions(Exception):
    """A worker has another version of Wardround or of a library that computes gradients."""


@dataclass(frozen=True)
class _Scan:
    """A scan in memory; unlike a function, it can be sent. One that can't be read is None."""

    prepared: Prepared | None

    def load(self) -> Prepared:
        """Return the scan."""
        if self.prepared is None:
            raise OSError("it could not be read at the hospital's process")
        return self.prepared


@dataclass(frozen=True)
class _Scans:
    """A patient's scans in memory (an `examples.Drawn`)."""

    pseudonym: str
    scans: tuple[_Scan, ...]


def _loaded(patient: Drawn) -> _Scans:
    """Return a patient's scans in memory, without what training does not need."""
    scans = []
    for scan in patient.scans:
        try:
            prepared = scan.load()
            scans.append(_Scan(replace(prepared, truth=prepared.target)))
        except Exception:  # logged where the hospital's own process prepares it
            scans.append(_Scan(None))
    return _Scans(patient.pseudonym, tuple(scans))


def _keep_freed_memory() -> None:
    """Have malloc keep what a step frees for the next one.

    Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, which gives it back to the system after each
    layer: a step took 1.8 times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that it takes


class HeldTraining:
    """A worker's part of a training: a Dask actor, which lives as long as the hospital's connection."""

    def __init__(self, training: TrainingOnWorkers) -> None:
        """Get ready.

        Raises:
            OtherVersions: the hospital's process has other versions.
        """
        if training.versions != versions():
            raise OtherVersions(
                f"it has {', '.join(versions()[1:])} and perhaps another version of Wardround than the "
                f"hospital's process"
            )
        torch.set_num_threads(training.threads)
        _keep_freed_memory()
        self._training = training
        self._device = torch.device(training.device)
        self._network = training.network.to(self._device)
        self._patients: dict[int, Examples] = {}

    def keep(self, patients: Mapping[int, Drawn]) -> bool:
        """Keep the scans of patients, by the patients' numbers."""
        told = self._training
        for number, patient in patients.items():
            self._patients[number] = prepare([patient], told.preprocessing, self._device, told.seed)
        return True

    def sums(
        self, weights: Sequence[Any], patients: Sequence[int], step: int, mechanism: Mechanism
    ) -> LotSum:
        """Return the sum of clipped gradients of patients who are here, at a network's parameters."""
        with torch.no_grad():
            for parameter, values in zip(self._network.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(values.copy()))
        examples = Examples(max(self._patients) + 1, lambda i, at: self._patients[i].draw(0, at))
        own = OwnSums(self._training.task, examples, self._training.config)
        return own(self._network, patients, step, mechanism).to(torch.device("cpu"))
