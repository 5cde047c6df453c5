"""Hospitals' processes on several machines of one operator, through a Dask cluster.

Each machine sees the hospitals' folders and the coordinator's at the same paths (shared storage). A Dask
worker (`dask worker ADDRESS`) keeps hospitals' processes as `wardround run` does on one machine; what it
gets is an order, which holds public values only, and it returns nothing. Prefect's tasks stay with the
coordinator and wait there: a worker needs neither Prefect's address nor its password, which
`DaskTaskRunner` would take to each machine.

Dask's own messages are pickles. So a cluster is for machines of one operator, for hospitals that are
made up or whose data are public, and never for hospitals that don't trust each other: those run
`wardround site worker`.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.hospitals.processes import HospitalFailed, HospitalLeftOut, HospitalProcess
from flows.hospitals.template import PASSED_ON, Template
from models.errors import FixYourInput
from sites.orders import Order

if TYPE_CHECKING:
    from distributed import Client

MARGIN_S = 30.0
"""Seconds beyond an order's time after which a worker that has not answered is given up."""


class NoCluster(FixYourInput):
    """The Dask cluster can't be used; the message says what is missing."""


@dataclass(frozen=True)
class ClusterHospital:
    """A hospital whose process is wherever the cluster has room (a `session.Reachable`)."""

    name: str
    folder: Path
    client: "Client"
    test_noise: int | None = None
    invited: list[Any] = field(default_factory=list)

    def carry_out(self, order: Order, timeout_s: float) -> None:
        """Have an order carried out on one of the machines.

        Raises:
            HospitalLeftOut: it took longer than `timeout_s`.
            HospitalFailed: the process, or its machine, could not do it.
        """
        self._result(carry_out_here, order, timeout_s)

    def invite(self, order: Order) -> None:
        """Have an order carried out without waiting."""
        if not self.invited or self.invited[-1].done():
            self.invited.append(self._submitted(carry_out_here, order, order.study.sites.deadline_s))

    def public_key(self) -> str:
        """Return the public key with which the hospital signs; raises as `carry_out` does."""
        return str(self._result(public_key_here, None, 600.0))

    def _submitted(self, call: Callable[..., Any], order: Order | None, timeout_s: float) -> Any:  # noqa: ANN401  # a future of Dask's
        told = (self.name, str(self.folder.resolve()), self.test_noise)
        text = None if order is None else order.model_dump_json()
        return self.client.submit(call, told, text, timeout_s, pure=False)

    def _result(self, call: Callable[..., Any], order: Order | None, timeout_s: float) -> Any:  # noqa: ANN401  # what the call returns
        from distributed import TimeoutError as TooLate  # noqa: PLC0415  # an extra
        from distributed.scheduler import KilledWorker  # noqa: PLC0415

        future = self._submitted(call, order, timeout_s)
        try:
            return future.result(timeout=timeout_s + MARGIN_S)
        except TooLate as error:
            future.cancel()
            raise HospitalLeftOut(f"{self.name}: no answer within {timeout_s:g} s.") from error
        except (KilledWorker, CancelledError) as error:
            raise HospitalFailed(f"{self.name}: its machine has left the cluster.") from error


@contextmanager
def on_cluster(
    address: str, folders: Mapping[str, Path], test_noise: int | None = None
) -> Iterator[dict[str, ClusterHospital]]:
    """Connect to a Dask scheduler, such as `tcp://10.0.0.5:8786`, and yield the hospitals.

    Raises:
        NoCluster: Dask is not installed, the scheduler can't be reached, or it has no worker.
    """
    try:
        from distributed import Client  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise NoCluster("--cluster: expected Dask; `pip install 'wardround[cluster]'`.") from error
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise NoCluster(f"--cluster: {address} can't be reached: {error}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise NoCluster(f"--cluster: {address} has no worker; start `dask worker {address}`.")
        yield {
            name: ClusterHospital(name, folder, client, test_noise) for name, folder in folders.items()
        }


Told = tuple[str, str, int | None]
"""A hospital for another machine: its name, its folder, and the seed of repeatable noise."""


@dataclass
class _Here:
    """The hospitals' processes that this Dask worker keeps."""

    template: Template | None = None
    processes: dict[Told, HospitalProcess] = field(default_factory=dict)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def process(self, told: Told) -> HospitalProcess:
        """Return a hospital's process, a fork of this worker's template."""
        with self._one_at_a_time:
            if self.template is None:
                known = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
                self.template = Template(known)
                self.template.start()
                atexit.register(self.close)
            if told not in self.processes:
                name, folder, noise = told
                if not Path(folder).is_dir():
                    raise HospitalFailed(
                        f"{name}: expected its folder {folder} on this machine too; machines of a "
                        f"cluster share the storage of the hospitals and of the coordinator."
                    )
                self.processes[told] = HospitalProcess(name, Path(folder), noise, template=self.template)
            return self.processes[told]

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()
        if self.template is not None:
            self.template.close()


_here = _Here()


def carry_out_here(told: Told, order: str, timeout_s: float) -> None:
    """Have an order carried out by a hospital's process on this machine; runs in a Dask worker."""
    _here.process(told).carry_out(Order.model_validate_json(order), timeout_s)


def public_key_here(told: Told, order: None, timeout_s: float) -> str:
    """Return a hospital's public key; runs in a Dask worker."""
    del order, timeout_s
    return _here.process(told).public_key()
