"""Hospitals on this machine: a process for each, restarted when it is killed.

A process knows one hospital's folder and no other. It is the fork of a template that has imported torch
(`flows.hospitals.template`), and ends when this process ends. It serves many rounds where there are few
hospitals; where there are many, it serves one request, and as many are alive as there are cores.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flows.hospitals.template import CODE, PASSED_ON, Forked, Template, TemplateEnded
from sites.orders import Order

PAUSE_S = 2.0
"""Seconds after which a hospital that waits for a person is asked again."""

CORES = threading.BoundedSemaphore(os.cpu_count() or 1)
"""The number of hospitals of this machine that work at a time; each trains on one core."""

MOST_KEPT = 32
"""The most hospitals whose processes stay alive between requests; each keeps some 100 MiB of its own."""

OnProgress = Callable[[str, str, int, int], None]
"""A function that is called with `(hospital, what, step, of)`."""


class HospitalFailed(Exception):
    """A hospital's process died, was too late, or could not carry out an order."""


class HospitalLeftOut(HospitalFailed):
    """A hospital was too late, or its work was cancelled: it is not asked again."""


class HospitalWaits(Exception):
    """A person of the hospital has to approve first; until then the request can be repeated."""


@dataclass
class HospitalProcess:
    """One hospital's process; started when the first order comes, started again if it died."""

    name: str
    folder: Path
    test_noise: int | None = None
    on_progress: OnProgress = lambda name, what, step, of: None
    passed_on: Sequence[str] = PASSED_ON
    template: Template | None = None
    records_spans: bool = False
    serves_once: bool = False
    _process: subprocess.Popen[str] | Forked | None = None
    _public_key: str | None = None
    _invited: threading.Thread | None = None
    _is_closed: bool = False
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def carry_out(self, order: Order, timeout_s: float) -> None:
        """Have an order carried out; see `Reachable`."""
        with CORES:
            request, until = order.model_dump(mode="json"), time.monotonic() + timeout_s
            while (left := until - time.monotonic()) > 0:
                try:
                    self.request(request, left)
                except HospitalWaits:
                    time.sleep(PAUSE_S)
                else:
                    return
        raise HospitalLeftOut(f"{self.name}: nobody at the hospital approved it in time.")

    def invite(self, order: Order) -> None:
        """Have an order carried out in the background; see `Reachable`."""

        def carry_out() -> None:
            with CORES, suppress(HospitalFailed, HospitalWaits):
                self.request(order.model_dump(mode="json"), order.study.sites.deadline_s)

        if self._invited is None or not self._invited.is_alive():
            self._invited = threading.Thread(target=carry_out, daemon=True)
            self._invited.start()

    def request(self, request: Mapping[str, Any], timeout_s: float) -> None:
        """Send the process a request, an order or its reference, and wait until it is done.

        Raises:
            HospitalLeftOut: it took longer than `timeout_s`; the process was killed.
            HospitalFailed: the process died, or could not carry it out.
            HospitalWaits: a person of the hospital has to approve first.
        """
        with self._one_at_a_time:
            if self._is_closed:
                raise HospitalFailed(f"{self.name}: its process is closed, and gets no more requests.")
            process = self._running()
            late = threading.Event()
            alarm = threading.Timer(timeout_s, self._end_late, [late])
            alarm.start()
            try:
                self._ask(process, request)
            except HospitalFailed as error:
                if late.is_set():
                    raise HospitalLeftOut(f"{self.name}: no answer within {timeout_s:g} s.") from error
                raise
            finally:
                alarm.cancel()
                if self.serves_once:
                    self._end()

    def start(self) -> None:
        """Start the process now, so that it imports its libraries before the first order."""
        with self._one_at_a_time:
            if not self._is_closed:
                self._running()

    def public_key(self) -> str:
        """Return the public key with which the hospital signs, once its process is ready.

        Raises:
            HospitalFailed: the process ended instead.
        """
        with self._one_at_a_time:
            if self._public_key is None:
                self._public_key = self._told_key(self._running())
                if self.serves_once:
                    self._end()
            return self._public_key

    def _told_key(self, process: "subprocess.Popen[str] | Forked") -> str:
        """Return the public key that a process tells when it is ready."""
        assert process.stdout is not None  # opened as a pipe
        while line := process.stdout.readline():
            if key := _parsed(line).get("public_key"):
                return str(key)
        raise HospitalFailed(f"{self.name}: its process did not start.")

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def kill(self) -> None:
        """Kill the process, and all processes that it started."""
        if self._process is not None:
            end_session(self._process)

    def _end_late(self, late: threading.Event) -> None:
        late.set()
        self.kill()

    def close(self) -> None:
        """Kill the process, wait until it has ended, and start no other."""
        self._is_closed = True
        self.kill()
        with self._one_at_a_time:  # a caller that waited for an answer has failed by now
            self._end()  # one that was being started when it was closed, too

    def _end(self) -> None:
        """Kill the process, and wait until it has ended; the next request starts another."""
        if self._process is None:
            return
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process = None

    def _running(self) -> "subprocess.Popen[str] | Forked":
        if self._process is None or self._process.poll() is not None:
            arguments = [] if self.test_noise is None else ["--test-noise", str(self.test_noise)]
            arguments += ["--spans"] if self.records_spans else []
            known = {name: os.environ[name] for name in self.passed_on if name in os.environ}
            self._process = self._started([".", *arguments], known)
        return self._process

    def _started(
        self, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> "subprocess.Popen[str] | Forked":
        """Return a new process: a fork of the template if there is one."""
        if self.template is not None:
            with suppress(TemplateEnded):
                return self.template.forked(self.folder, arguments, environment)
        # -P: files in the hospital's folder are data, never modules to import.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "sites.worker", *arguments],
            cwd=self.folder,
            env={**environment, "PYTHONPATH": str(CODE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _ask(self, process: "subprocess.Popen[str] | Forked", request: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None  # both were opened as pipes
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            answer = _parsed(line)
            if "progress" in answer:
                self.on_progress(self.name, answer["progress"], answer["step"], answer["of"])
            elif "failed" in answer:
                raise HospitalFailed(
                    f"{self.name}: {answer['failed']}; see the hospital's state/site.log."
                )
            elif "waiting" in answer:
                raise HospitalWaits(answer["waiting"])
            elif "done" in answer:
                return
        self.kill()
        process.wait()
        raise HospitalFailed(f"{self.name}: its process has died.")


def _parsed(line: str) -> dict[str, Any]:
    """Return a line's JSON object, empty for any other line, which a library may have printed."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def end_session(process: "subprocess.Popen[Any] | Forked") -> None:
    """Kill a process that leads its session, and all processes that it started there."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has been forked and does not lead its session yet
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


class Keyed(Protocol):
    """A hospital that tells its public key."""

    def public_key(self) -> str:
        """Return the public key with which the hospital signs."""
        ...


def public_keys(processes: Mapping[str, Keyed]) -> dict[str, str]:
    """Return each hospital's public key, asked of as many at a time as there are cores.

    Raises:
        HospitalFailed: a hospital's process ended instead.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        asked = [threads.submit(process.public_key) for process in processes.values()]
        try:
            return {name: key.result() for name, key in zip(processes, asked, strict=True)}
        except BaseException:
            threads.shutdown(cancel_futures=True)  # nobody waits for the others
            raise


@contextmanager
def warm(
    folders: Mapping[str, Path],
    on_progress: OnProgress,
    template: Template,
    test_noise: int | None = None,
    *,
    records_spans: bool = False,
) -> Iterator[dict[str, HospitalProcess]]:
    """Start a process for each hospital, a fork of the template; end them all afterwards.

    More than `MOST_KEPT` hospitals get their processes when they are asked.
    """
    are_many = len(folders) > MOST_KEPT
    processes = {
        name: HospitalProcess(
            name, folder, test_noise, on_progress, template=template, records_spans=records_spans,
            serves_once=are_many,
        )
        for name, folder in folders.items()
    }  # fmt: skip
    try:
        for process in () if are_many else processes.values():  # not waiting: the template imports
            threading.Thread(target=process.start, daemon=True).start()
        yield processes
    finally:
        for process in processes.values():
            process.close()
