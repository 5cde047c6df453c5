"""Publication of a run in MLflow and Prefect: rounds, pictures, models, the report, decisions.

Each publication holds the artifact lock from before it reads the record until everything is published:
no newer content is overwritten, and `verify` sees each round of a running training as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from threading import Event
from types import TracebackType

from flows.audits.records import audits_of
from flows.hospitals.session import session_of
from flows.reporting.papers.checklist import Answers
from flows.reporting.papers.pages import paper
from flows.reporting.prefect_artifacts import announce
from flows.reporting.report import report
from flows.runs.artifacts import PAPERS, REPORT, artifact_lock
from flows.runs.records import RoundRecord
from flows.runs.run import NotAllowed, Run
from flows.tracking.tracking import Tracking, attach_pages, log_audit
from models.spans import span


class Publishing(AbstractContextManager["Publishing"]):
    """The publication of rounds beside the training: one at a time, while the next round is trained.

    What a publication raises is raised by the next call or at the end. The rounds are recorded; what
    MLflow lacks of them is logged at the next start (`backfill`).
    """

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publishing")
        self._last: Future[None] | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(*(() if error is None else (Exception,))):  # the first error is the one to report
            self.wait()
        self._thread.shutdown()

    def wait(self) -> None:
        """Wait until everything is published; raise what a publication raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def publish(self, run: Run, record: RoundRecord) -> None:
        """Record a finished round, and begin to publish it, after the one before."""
        self.wait()
        is_recorded = Event()
        publication = copy_context().run  # Prefect finds its flow run in the context
        self._last = self._thread.submit(
            publication, publish_round, run, self.tracking, record, is_recorded
        )
        self._last.add_done_callback(lambda _: is_recorded.set())  # it failed before
        is_recorded.wait()
        if self._last.done():
            self.wait()

    @contextmanager
    def paused(self, run: Run) -> Iterator[None]:
        """Hold the lock under which a run's members may change, after what is being published."""
        self.wait()
        with artifact_lock(run):
            yield


def publish_round(run: Run, tracking: Tracking, record: RoundRecord, is_recorded: Event) -> None:
    """Record a finished round, set `is_recorded`, publish the round, and show it to the person."""
    with artifact_lock(run):
        run.keep(record)
        run.publish_head(record)
        is_recorded.set()
        with span("log", round=record.round):
            tracking.log(record)
        with span("report", round=record.round):
            attach_pages(run, pages_of(run))
    with span("announce", round=record.round):
        announce(run, record, tracking.page)
    session_of(run).on_record(run, record)


def backfill(run: Run, tracking: Tracking, records: Sequence[RoundRecord]) -> None:
    """Publish rounds that MLflow may lack, after an interruption or in a new store; the newest is last.

    Entries that MLflow has of them stay as they are.
    """
    with artifact_lock(run):
        run.publish_head(records[-1])
        for record in records:
            tracking.log(record)
        for audit in audits_of(run):
            log_audit(run, audit)
        attach_pages(run, pages_of(run))


def pages_of(run: Run) -> Mapping[str, bytes]:
    """Return a run's report and, once all rounds are recorded, its papers, by their paths in MLflow."""
    if run.records()[-1].round < run.study.rounds:
        return {REPORT: report(run)}
    papers = {path: paper(run, reader, Answers()) for reader, path in PAPERS.items()}
    return {REPORT: report(run), **papers}


def publish_decisions_page(run: Run) -> None:
    """Publish the decisions so far; skip it for the officer's account, which may not write runs."""
    with suppress(NotAllowed), artifact_lock(run):
        newest = run.again()  # a hospital may have joined
        attach_pages(newest, pages_of(newest))
