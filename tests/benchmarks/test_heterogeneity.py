"""The benchmark's patients are read as a study's are."""

import math
from pathlib import Path

import pytest
import yaml

from sites.cohort import Cohort
from sites.local_models import CPU, network_for
from sites.study import Study

ROOT = Path(__file__).parents[2]


def test_every_x_ray_of_the_validation_part_is_scored(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained network's metrics are those of pictures, and not of scans that can't be read."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # they import each other by plain names
    from heterogeneity import validation_part
    from simulation import scored

    study = Study.model_validate(yaml.safe_load((ROOT / "studies" / "pneumonia.yaml").read_text()))
    patients = validation_part(study, Cohort((), ()))
    metrics = scored(study, network_for(study.network, study, CPU, None), patients)
    assert len(patients) == 524
    assert 0 < metrics["auroc"] < 1 and math.isfinite(metrics["calibration_error"])
