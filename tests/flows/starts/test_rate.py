import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from public_cases import labelled
from puppets import Federation
from rich.console import Console

from flows.coordination.readiness import expectations
from flows.reporting.progress import Live
from flows.starts.rate import reach_of, warnings
from privacy.mechanisms import mechanism_for
from privacy.signal import NEEDED
from sites.local_models import numel_of
from sites.study import Study


def study(study_with, epsilon: float = 8.0, channels: tuple[int, ...] = (16, 32, 64)) -> Study:
    privacy = {
        "mode": "local", "unit": "patient", "epsilon": epsilon, "delta": 1e-5,
        "clip": {"kind": "normalised", "norm": 1.0},
    }  # fmt: skip
    return study_with(
        privacy=privacy, network={"name": "UNet", "channels": list(channels)},
        training={"steps": 4, "lr": 0.1, "schedule": "cosine", "lot": "all"}, rounds=3,
    )  # fmt: skip


def hospitals(patients: int, count: int = 4) -> dict[str, tuple[int, int]]:
    return {f"hospital-{k}": (patients, 4) for k in range(count)}


def test_four_hospitals_of_28_are_enough_at_epsilon_8_and_of_two_patients_are_not(study_with) -> None:
    assert warnings(study(study_with), hospitals(28)) == ()
    (text,) = warnings(study(study_with, 0.5), hospitals(2))
    assert "4 hospitals with 8 training patients together at epsilon 0.5" in text


def test_each_way_out_that_a_warning_names_would_suffice(study_with) -> None:
    (text,) = warnings(study(study_with, 0.5), hospitals(4))
    numbers = text.partition("suffice: ")[2]
    patients = int(numbers.split(" patients")[0])
    parameters = int(numbers.split("network of ")[1].split(" parameters")[0].replace(",", ""))
    epsilon = float(numbers.split("epsilon ")[1].rstrip("."))
    weak = reach_of(study(study_with, 0.5), hospitals(4))
    assert weak.strength(parameters) >= NEEDED * 0.999
    more = reach_of(study(study_with, 0.5), hospitals(-(-patients // 4)))
    assert more.strength(114_000) >= NEEDED * 0.95
    assert reach_of(study(study_with, 0.5), hospitals(4), epsilon).strength(115_000) >= NEEDED * 0.99


def with_sum(study_with, epsilon: float, patients: int) -> float:
    """Return the strength of the same budget in a secure sum of thirty rounds."""
    private = study(study_with, epsilon).privacy.model_dump()
    private |= {"mode": "shared_noise", "sum": {"spare": 0}}
    summed = study_with(
        privacy=private, network={"name": "UNet", "channels": [16, 32, 64]}, rounds=30,
        distillation=None,
        training={"steps": 1, "lr": 0.1, "lot": "all", "momentum": 0}, export="gradient_sum",
        strategy={"name": "fed_avg_m", "momentum": 0.9},
    )  # fmt: skip
    return reach_of(summed, hospitals(patients)).strength(numel_of(summed))


@pytest.mark.parametrize(("patients", "helps"), [(9, True), (4, False)])
def test_a_secure_sum_is_named_where_it_would_suffice_and_only_there(
    study_with, patients: int, helps: bool
) -> None:
    (text,) = warnings(study(study_with, 1.0), hospitals(patients))
    assert ("a secure sum" in text) == helps
    assert (with_sum(study_with, 1.0, patients) >= NEEDED) == helps


def test_few_hospitals_as_the_unit_of_privacy_are_warned_of_and_enough_are_not(study_with) -> None:
    privacy = {
        "mode": "shared_noise", "unit": "hospital", "epsilon": 8, "delta": 1e-5,
        "clip": {"kind": "flat", "norm": 0.1}, "sum": {},
    }  # fmt: skip
    asked = study_with(
        privacy=privacy, export="weights", distillation=None, rounds=30,
        network={"name": "UNet", "channels": [16, 32, 64]},
        training={"steps": 10, "lr": 0.1, "lot": "all"}, strategy={"name": "fed_avg"},
    )  # fmt: skip
    (text,) = warnings(asked, hospitals(1000, 4))
    enough = int(text.partition("suffice: ")[2].split(" hospitals")[0])
    assert warnings(asked, hospitals(28, enough)) == ()
    assert warnings(asked, hospitals(28, enough // 2)) != ()


def test_a_study_without_privacy_warns_of_nothing(study_with) -> None:
    plain = study_with(privacy={"mode": "none"}, distillation=None, export="weights")
    assert warnings(plain, hospitals(1)) == ()
    assert reach_of(plain, hospitals(28)) is None


def test_the_noise_is_that_of_the_mechanism_that_hospitals_charge(study_with) -> None:
    asked = study(study_with)
    mechanism = mechanism_for(asked.privacy, rounds=3, steps=4, lot=None, declared=28)
    one = reach_of(asked, hospitals(28, 1))
    four = reach_of(asked, hospitals(28, 4))
    assert one.noise == pytest.approx(2 * four.noise)
    assert one.noise > mechanism.noise_std / 28


def test_before_the_first_charge_the_terminal_shows_the_start_its_rate_and_a_weak_signal(
    tmp_path: Path, study_with
) -> None:
    labelled(tmp_path / "public" / "twenty", 3)
    weak = study(study_with, 0.05).model_dump(mode="json") | {
        "start": {"kind": "public", "folder": "twenty", "steps": 2, "batch": 2},
        "training": {"steps": 4, "lr": "auto", "lot": "all"},
        "network": {"name": "UNet", "channels": [16, 32]},
    }
    federation = Federation(tmp_path, Study.model_validate(weak))
    out = StringIO()
    Live(Console(file=out, width=400)).round(federation.run, federation.base)
    shown = out.getvalue()
    assert re.search(r"start: public \(dice 0\.\d+ on its own training cases\)", shown)
    assert re.search(r"learning rate \d", shown)
    assert "are not expected to improve the start" in shown


def test_a_federation_is_warned_by_the_most_patients_that_its_file_names(
    tmp_path: Path, study_with
) -> None:
    sites = {f"hospital-{k}": {"key": f"{k}" * 64, "patients": 3} for k in range(1, 4)}
    file = tmp_path / "federation.yaml"
    file.write_text(yaml.safe_dump({"exchange": str(tmp_path), "hospitals": sites}))
    (text,) = expectations(study(study_with, 0.5), file)
    assert text.startswith("3 hospitals with 9 training patients together at epsilon 0.5")
