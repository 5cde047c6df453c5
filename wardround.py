"""Wardround for those who script: load a model, look at runs.

    import wardround
    model = wardround.load_model("hippocampus-approved")      # or a run's name, a folder, NAME/VERSION
    probabilities = model.probabilities(image, spacing_mm=(1.0, 1.0, 1.0))
    table = wardround.rounds()                                # the newest run, as a pandas data frame

`model.network` is the MONAI network with its weights; `model.probabilities` prepares an image as
training did. The commands (`wardround --help`) do everything else.
"""

from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]  # it has no types of its own

from flows import served_model
from flows.runs.comparison import differences, lines, rows
from flows.runs.paths import Home
from flows.runs.run import named_run
from flows.served_model import ServedModel
from flows.serving.model_files import model_files

__all__ = ["ServedModel", "compare", "load_model", "rounds", "runs"]

HERE = Path()


def load_model(named: str, home: Path = HERE) -> ServedModel:
    """Return a model with its network, weights and preprocessing.

    Args:
        named: `<study>-approved` (what people released, checked by their signatures) or
            `<study>-candidates`, either with `/VERSION`; a run's name with `:ROUND`; or a folder with
            `model.json`.
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
