"""Wardround for those who script: plan and run a study, look at runs, load a model.

    import wardround
    costs = wardround.plan("studies/mine.yaml", sites="wards")   # before anything is spent
    name = wardround.run("studies/mine.yaml", sites="wards")     # trains; an unfinished run goes on
    model = wardround.load_model("hippocampus-approved")      # or a run's name, a folder, NAME/VERSION
    probabilities = model.probabilities(image, spacing_mm=(1.0, 1.0, 1.0))
    table = wardround.rounds()                                # the newest run, as a pandas data frame

`model.network` is the MONAI network with its weights; `model.probabilities` prepares an image as
training did. The commands (`wardround --help`) do everything else.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]  # it has no types of its own

from flows import served_model
from flows.planning.plan import Plan, plan_of_patients, plan_of_wards
from flows.runs.comparison import differences, lines, rows
from flows.runs.paths import Home
from flows.runs.run import named_run, started_runs
from flows.served_model import ServedModel
from flows.serving.model_files import model_files
from models.errors import WardroundError
from sites.setup.wards import wards_in
from sites.study import load_study
from sites.yaml_files import ConfigError

__all__ = [
    "Failed", "Plan", "ServedModel", "WardroundError", "compare", "load_model", "plan", "rounds", "run",
    "runs",
]  # fmt: skip

HERE = Path()


class Failed(WardroundError):
    """A training ended with an error; the message is what the command printed."""

    next_step = "do what the message says."


def plan(study: str | Path, sites: str | Path | None = None, patients: Sequence[int] = ()) -> Plan:
    """Return what a study will cost each hospital: noise, epsilon by round, bytes, time, warnings.

    Args:
        study: its YAML file.
        sites: the folder with the hospitals, whose policies then count.
        patients: in place of `sites`, the training patients that each hospital declares.

    Raises:
        ConfigError: the study or a policy is wrong, or neither or both of the two are given.
    """
    asked = load_study(Path(study))
    if (sites is None) == (not patients):
        raise ConfigError("Expected sites or patients, one of both.")
    if sites is None:
        return plan_of_patients(asked, patients)
    return plan_of_wards(asked, wards_in(Path(sites)))


def run(study: str | Path, sites: str | Path = "wards", home: str | Path = HERE) -> str:
    """Train a study among the hospitals of a folder, as `wardround run` does; return the run's name.

    The training has processes of its own, so it does not touch the one that calls. An unfinished run of
    this study goes on.

    Raises:
        ConfigError: the study is wrong.
        Failed: the training ended with an error; nothing that was recorded is lost.
    """
    asked, folder = load_study(Path(study)), Path(home)
    command = [sys.executable, "-m", "flows.cli", "run", str(Path(study).resolve())]
    command += ["--sites", str(Path(sites).resolve())]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip() or done.stdout.strip())
    return started_runs(Home(folder), asked)[-1].name


def load_model(named: str, home: Path = HERE) -> ServedModel:
    """Return a model with its network, weights and preprocessing.

    Args:
        named: `<study>-approved` (what people released, checked by their signatures) or
            `<study>-candidates`, either with `/VERSION`; a run's name with `:ROUND`; a bundle's folder;
            or a folder with `model.json`.
        home: the coordinator's folder.

    Raises:
        ConfigError: there is no such model, or it was withdrawn.
        NotProven: nobody has released it.
    """
    with model_files(Home(Path(home)), named) as found:
        return served_model.load(found.folder)


def runs(home: Path = HERE) -> pd.DataFrame:
    """Return a row for each training of a folder: study, rounds, epsilon, quality."""
    return pd.DataFrame(lines(Home(Path(home))))


def rounds(run: str | None = None, home: Path = HERE) -> pd.DataFrame:
    """Return a row for each hospital and round of a run, the newest by default.

    Columns: `round`, `hospital`, `epsilon`, `weight`, `seconds`, and each published metric.
    """
    return pd.DataFrame(rows(named_run(Home(Path(home)), run)))


def compare(first: str, second: str, home: Path = HERE) -> pd.DataFrame:
    """Return what two runs differ in: keys of the study, hospitals, quality, epsilon."""
    place = Home(Path(home))
    return pd.DataFrame(differences(named_run(place, first), named_run(place, second)))
