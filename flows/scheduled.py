"""What a schedule names: `prefect.yaml` puts it up, and the coordinator's own worker carries it out."""

from pathlib import Path

from prefect import flow
from rich.console import Console

from flows import coordinator
from flows.home import Home
from flows.live import Live
from sites.study import load_study


@flow(name="train", flow_run_name="train {study}")
def train(study: str) -> None:
    """Train a study whose file lies in `studies/` among the hospitals of `federation.yaml`.

    Raises what `flows.coordinator.train` raises.
    """
    home, asked = Home(Path.cwd()), load_study(Path("studies") / f"{study}.yaml")
    coordinator.train(home, asked, Path("federation.yaml"), Live(Console()))
