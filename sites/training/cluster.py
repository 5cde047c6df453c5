"""Private training on several machines or GPUs of one hospital, through its own Dask cluster.

Each patient lies with one worker, whole, so clipping stays exact: a worker gets the parameters, clips
and adds up the gradients of its own patients, and returns one sum. The sums are rounded to a grid on
which adding is exact (`lot_sums.FINER`), so with all patients in each step the number of workers changes
no bit; where steps sample patients, other patients share a microbatch, whose float32 rounding differs.
Noise, ledger and keys stay with the hospital's own process; workers get prepared scans and a network.

A worker that is lost, or never was there, costs time alone: the hospital's process sums the gradients of
that worker's patients itself.

Dask's own messages are pickles, and whoever reaches a scheduler can run programs. So the address is
`tls://` with the hospital's own certificates, or that of this machine.
"""

import copy
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.objectives import Task
from models.settings.images import PreprocessingConfig
from privacy.mechanisms import Mechanism
from sites.code_version import code_sha256
from sites.cohort import Patient
from sites.imaging.preprocessing import Prepared
from sites.imaging.reading import Reading
from sites.policy.cluster import ClusterConfig
from sites.training.config import TrainingConfig
from sites.training.examples import Examples, prepare
from sites.training.lot_sums import Done, LotSum, OwnSums, added

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("wardround.site")

LOOK_S = 2.0
"""Seconds between two looks at whether a worker still lives."""


@dataclass(frozen=True)
class TrainingOnWorkers:
    """What a worker has to know of a training, beside its patients.

    Attributes:
        seed: seed of the random draws from a patient's scans.
        device: `cpu` or `cuda`, as in the hospital's policy; a worker uses the first GPU that it sees.
        threads: CPU threads of a worker.
    """

    network: nn.Module
    task: Task
    config: TrainingConfig
    preprocessing: PreprocessingConfig
    seed: int
    device: str
    threads: int
    code: str = field(default_factory=code_sha256)


@contextmanager
def spread(
    cluster: ClusterConfig, training: TrainingOnWorkers, patients: Sequence[Patient], own: OwnSums
) -> Iterator["SpreadSums | OwnSums"]:
    """Yield sums that the workers of a cluster compute, or `own` if none can be reached."""
    try:
        from distributed import Client  # noqa: PLC0415  # an extra

        client = Client(cluster.scheduler, security=_security(cluster), timeout=10, set_as_default=False)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        log.warning("the cluster %s can't be used; training alone: %s", cluster.scheduler, error)
        yield own
        return
    with client:
        sums = SpreadSums(client, uuid.uuid4().hex, patients, own)
        sums.deal(training)
        try:
            yield sums
        finally:
            sums.forget()


def reach(cluster: ClusterConfig) -> int:
    """Return the number of workers of a cluster; raise OSError or ValueError if it can't be reached."""
    from distributed import Client  # noqa: PLC0415  # an extra

    security = _security(cluster)
    with Client(cluster.scheduler, security=security, timeout=10, set_as_default=False) as client:
        return len(_workers(client))


def _security(cluster: ClusterConfig) -> Any:  # noqa: ANN401  # Dask's, an extra
    if cluster.certificate is None:
        return None
    from distributed.security import Security  # noqa: PLC0415

    return Security(
        tls_ca_file=str(cluster.ca),
        tls_client_cert=str(cluster.certificate),
        tls_client_key=str(cluster.key),
        require_encryption=True,
    )


def _workers(client: "Client") -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


@dataclass
class SpreadSums:
    """Sums of clipped gradients by the workers of a cluster (a `LotSums`).

    The workers take turns at the microbatches of all patients in order, and keep those patients.

    Attributes:
        name: a name of this training that no other has.
        keepers: by worker, the numbers of the patients whom it has; a worker that is lost is not there.
    """

    client: "Client"
    name: str
    patients: Sequence[Patient]
    own: OwnSums
    keepers: dict[str, list[int]] = field(default_factory=dict)

    def deal(self, training: TrainingOnWorkers) -> None:
        """Give each worker the training and its patients."""
        workers = _workers(self.client)
        if not workers:
            log.warning("the cluster has no worker; training alone")
            return
        size = training.config.microbatch
        sent: dict[str, Future] = {}
        for worker in workers:
            sent[worker] = self._submit(worker, begin_here, self.name, training)
        for start in range(0, len(self.patients), size):
            worker = workers[start // size % len(workers)]
            for i in range(start, min(start + size, len(self.patients))):
                sent[worker] = self._submit(
                    worker, keep_here, self.name, i, _loaded(self.patients[i]), sent[worker]
                )
                self.keepers.setdefault(worker, []).append(i)
            self._taken(worker, sent[worker])  # one microbatch at a time is on its way
        log.info("gradients are summed by %d workers", len(self.keepers))

    def __call__(
        self,
        network: nn.Module,
        patients: Sequence[int],
        step: int,
        mechanism: Mechanism,
        done: Done = lambda _: None,
    ) -> LotSum:
        """Return the sum over `patients`; see `lot_sums.LotSums`."""
        weights = [p.detach().cpu().numpy() for p in network.parameters()]
        asked, rest = {}, set(patients)
        for worker, kept in self.keepers.items():
            if mine := [i for i in kept if i in rest]:
                future = self._submit(worker, sum_here, self.name, weights, mine, step, mechanism)
                asked[worker] = (future, mine)
                rest.difference_update(mine)
        parts, count = [], 0
        for worker, (future, mine) in asked.items():
            found = self._taken(worker, future)
            if found is None:
                rest.update(mine)
                continue
            parts.append(found)
            count += len(mine)
            done(count)
        by_us = [i for i in patients if i in rest]
        device = next(network.parameters()).device
        on_device = [replace(part, sums=_to(part, device)) for part in parts]
        ours = self.own(network, by_us, step, mechanism, lambda more: done(count + more))
        return added([*on_device, ours])

    def forget(self) -> None:
        """Have the workers drop the patients' scans."""
        for worker in self.keepers:
            with suppress(Exception):  # a worker that has ended has dropped them
                self._submit(worker, end_here, self.name).result(timeout=10)

    def _submit(self, worker: str, call: Any, *told: Any) -> "Future":  # noqa: ANN401  # Dask's own
        return self.client.submit(
            call, *told, workers=[worker], allow_other_workers=False, pure=False, retries=0
        )

    def _taken(self, worker: str, future: "Future") -> Any:  # noqa: ANN401  # what the call returned
        """Return a call's result; None if its worker is lost, which keeps no patient from then on."""
        from distributed import TimeoutError as TooLate  # noqa: PLC0415  # an extra

        while True:
            try:
                return future.result(timeout=LOOK_S)
            except TooLate:
                if worker in _workers(self.client):
                    continue
                error = "it has left the cluster"
            except OtherCode as fault:
                error = str(fault)
            except Exception as fault:  # whatever it is, the hospital's own process does the work
                error = type(fault).__name__
            log.warning("worker %s is lost: %s; its patients are trained here", worker, error)
            with suppress(Exception):
                future.cancel()
            self.keepers.pop(worker, None)
            return None


class OtherCode(Exception):
    """A worker has another version of Wardround or of PyTorch."""


def _to(part: LotSum, device: torch.device) -> tuple[torch.Tensor, ...] | None:
    return part.sums and tuple(each.to(device) for each in part.sums)


@dataclass(frozen=True)
class _Loaded:
    """A scan that is in memory; unlike a function, it can be sent."""

    prepared: Prepared

    def __call__(self) -> Prepared:
        return self.prepared


def _loaded(patient: Patient) -> Patient:
    """Return a patient whose scans are in memory; a scan that can't be read is left out."""
    scans: list[Reading] = []
    for scan in patient.scans:
        try:
            prepared = scan.load()
        except Exception as error:
            log.warning("a scan can't be read for training and adds nothing: %s", type(error).__name__)
            continue
        small = replace(prepared, truth=prepared.target)  # training needs no other
        scans.append(replace(scan, load=_Loaded(small)))
    return replace(patient, scans=tuple(scans))


@dataclass
class _Here:
    """A training at this Dask worker."""

    training: TrainingOnWorkers
    network: nn.Module
    device: torch.device
    patients: dict[int, Examples] = field(default_factory=dict)

    def draw(self, patient: int, step: int) -> Any:  # noqa: ANN401  # a pair of tensors, or None
        """Return what `Examples.draw` does, of a patient who is here."""
        return self.patients[patient].draw(0, step)


_here: dict[str, _Here] = {}


def begin_here(name: str, training: TrainingOnWorkers) -> None:
    """Get ready for a training; runs in a Dask worker, as the functions below."""
    if training.code != code_sha256():
        raise OtherCode("it has another version of Wardround than the hospital's process")
    torch.set_num_threads(training.threads)
    torch.backends.cudnn.allow_tf32 = False  # too coarse for the clip norm's bound
    device = torch.device(training.device)
    _here[name] = _Here(training, copy.deepcopy(training.network).to(device), device)


def keep_here(name: str, number: int, patient: Patient, before: None) -> None:
    """Keep a patient's scans; `before` is what has to be done first."""
    del before
    here = _here[name]
    here.patients[number] = prepare(
        [patient], here.training.preprocessing, here.device, here.training.seed
    )


def sum_here(
    name: str, weights: Sequence[Any], patients: Sequence[int], step: int, mechanism: Mechanism
) -> LotSum:
    """Return the sum of clipped gradients of patients who are here, at a network's parameters."""
    here = _here[name]
    with torch.no_grad():
        for parameter, values in zip(here.network.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(values.copy()))
    examples = Examples(max(here.patients) + 1, here.draw)
    own = OwnSums(here.training.task, examples, here.training.config)
    found = own(here.network, patients, step, mechanism)
    return replace(found, sums=_to(found, torch.device("cpu")))


def end_here(name: str) -> None:
    """Drop a training and its patients."""
    _here.pop(name, None)
