"""The flow that schedules name: `prefect.yaml` deploys it, and the coordinator's own worker runs it."""

from pathlib import Path

from prefect import flow
from rich.console import Console

from flows.coordination import remote
from flows.coordination.resume import is_interrupted
from flows.reporting.progress import Live
from flows.runs.paths import Home
from sites.study import load_study


@flow(name="train", flow_run_name="train {study}")
def train(study: str, *, only_resume: bool = False) -> None:
    """Train a study whose file is in `studies/` among the hospitals of `federation.yaml`.

    With `only_resume`, an interrupted run goes on, and no new one begins.

    Raises what `flows.coordination.remote.train` raises.
    """
    home, asked = Home(Path.cwd()), load_study(Path("studies") / f"{study}.yaml")
    if only_resume and not is_interrupted(home, asked):
        return
    remote.train(home, asked, Path("federation.yaml"), Live(Console()))
