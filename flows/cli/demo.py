"""The demo: its made-up hospitals, its study, and the deletion of an earlier demo."""

import shutil
from itertools import product
from pathlib import Path

from rich.console import Console

from flows.reporting.progress import summary
from flows.runs.paths import Home
from flows.runs.run import Run, runs_of
from sites.datasets.phantoms import SCANNERS, Scanner, make_wards
from sites.policy.policy import load_policy
from sites.study import Study, load_study
from sites.yaml_files import ConfigError

STUDY = Path(__file__).parents[2] / "studies" / "demo.yaml"
WARDS = "wards"
PUBLIC = Scanner("made-up", 48, (10, 200, 420, 330), 40, "RAS")
"""Made-up patients in `public/`, from whom the first model learns."""


def prepare(folder: Path, seed: int) -> tuple[Study, Path]:
    """Return the demo's study and the folder with its hospitals; make what is missing."""
    wards = folder / WARDS
    make_wards(wards, seed)
    make_wards(Home(folder).public, seed, (PUBLIC,), first=len(SCANNERS))
    return load_study(STUDY).model_copy(update={"seed": seed}), wards


def delete(folder: Path) -> None:
    """Delete the demo's hospitals, what they have published, and the demo's runs, and nothing else.

    Raises:
        ConfigError: a hospital with a name of the demo's is not made up, or another study has trained
            with these; then nothing is deleted.
    """
    home, names = Home(folder), {scanner.name for scanner in SCANNERS}
    runs = [Run.open(home, path.parent.name) for path in sorted(home.runs.glob("*/run.json"))]
    for run in runs:
        if run.study.name != STUDY.stem and names & run.description.roster.keys():
            raise ConfigError(
                f"{folder / WARDS}: {run.name} asked these hospitals too, and nobody could verify it "
                f"without them. Run the demo in another folder."
            )
    wards = [folder / WARDS / name for name in sorted(names)]
    wards.append(home.public / PUBLIC.name)
    wards = [ward for ward in wards if ward.exists()]
    for ward in wards:
        if not load_policy(ward).phantom:
            raise ConfigError(
                f"{ward}: expected a made-up hospital, got one without `phantom: true`. "
                f"Run the demo in another folder."
            )
    for ward in wards:
        shutil.rmtree(ward)
    for kind, name in product(("statements", "orders", "objects"), names):  # of keys that are gone
        shutil.rmtree(Path(home.exchange) / kind / name, ignore_errors=True)
    for run in runs:
        if run.study.name == STUDY.stem:
            shutil.rmtree(run.folder)


def show_finished(folder: Path, study: Study) -> bool:
    """Show the table of a finished demo, and return whether there is one."""
    finished = [run for run in runs_of(Home(folder), study) if run.is_finished]
    if not finished:
        return False
    console = Console()
    console.print(summary(finished[-1]))
    console.print(
        "This demo is finished, and its patients have spent their budget. "
        "See it with `wardround ui`; start again with `wardround demo --fresh`."
    )
    return True
