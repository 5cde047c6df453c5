"""The hardest evaluation cases of this hospital for a model, for the hospital's own use only.

Nothing here is published or written to the outbox.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from models.checkpoints import StoredParams
from models.objectives import Prediction, dice_outcome
from models.params import Params
from models.pictures import PicturedCase, worst_first
from models.settings.tasks import SegmentationConfig
from sites.hospital import Hospital
from sites.imaging.intake import read_case
from sites.inference import predictor
from sites.listing.pseudonyms import evaluator
from sites.local_models import CPU, network_for
from sites.study import Study


@dataclass(frozen=True)
class SeenModel:
    """A global model that the hospital has stored."""

    study: Study
    run: str
    round: int
    params: Params


def seen_models(hospital: Hospital) -> Iterator[SeenModel]:
    """Yield the global models of segmentation studies that the hospital has fetched and stored."""
    for run, study in sorted(hospital.known_runs().items()):
        if study.task.kind != "segmentation":
            continue
        for path in sorted((hospital.state / "global" / run).glob("*.safetensors")):
            local = hospital.stored("local", run, int(path.stem))
            kept = StoredParams(local) if local.exists() else {}
            yield SeenModel(study, run, int(path.stem), {**StoredParams(path), **kept})


def hardest(hospital: Hospital, seen: SeenModel, count: int) -> list[PicturedCase]:
    """Return the evaluation cases with the lowest Dice of a model, under their names in the list."""
    study = seen.study
    if not isinstance(study.task, SegmentationConfig):
        return []
    predict = predictor(network_for(study.network, study, CPU, seen.params), study, study.network, CPU)
    is_evaluation = evaluator(hospital.split, hospital.pseudonym_key)
    found: list[PicturedCase] = []
    for case in hospital.checked_cases(study.task, study.preprocessing):
        if case.reading is None or not is_evaluation(case.files.patient):
            continue
        prepared = case.reading.load()
        probabilities = predict(prepared)
        outcome = dice_outcome(
            Prediction(probabilities, prepared.truth, prepared.spacing_mm), study.task
        )
        scan, _ = read_case(hospital.data, case.files, study.task)
        prediction = probabilities.argmax(0).numpy()
        shown = next(channel for channel in scan.image if channel.any())
        found.append(
            PicturedCase(case.files.case, shown, prepared.truth.numpy(), prediction, outcome["dice"])
        )
        found = worst_first(found)[:count]  # at most this many scans in memory
    return found
