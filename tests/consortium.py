"""A coordinator and its hospitals in one process, which tests lead through a round phase by phase."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedavg_by_hand as by_hand
import torch
from conftest import change_yaml

from flows.rounds import aggregation, figures, secure_sum
from flows.rounds.global_model import publish_model
from flows.rounds.membership import participants
from flows.rounds.recording import round_record
from flows.rounds.statements import NO_ANSWERS, Answers, answers, order
from flows.runs.paths import Home
from flows.runs.records import RoundRecord, StartRecord
from flows.runs.run import Run
from flows.starts.first_model import start_of
from models import params as P
from privacy.noise.source import NoiseSource
from sites.datasets.phantoms import Scanner, make_wards
from sites.exchange.phases import Phase
from sites.hospital import Hospital
from sites.orders import Order
from sites.progress import ignore_progress
from sites.protocol.dispatch import carry_out
from sites.setup.wards import introduce
from sites.study import Study
from sites.training.examples import prepare

SEED = 3
NAMES = ("north", "east", "south", "west")
Alter = Callable[[Order], Order]


def study_with_sum(content: Mapping[str, Any], mode: str, **changes: Any) -> Study:
    """Return a small study with a secure sum, with some keys changed."""
    shared = mode == "shared_noise"
    whole = {
        **content,
        "sites": {"min": changes.pop("fewest", 3), "deadline_s": 120},
        "privacy": {
            **content["privacy"], "mode": mode, "accountants": ["rdp"],
            "sum": {"dropouts": 0, "colluding": 0, **changes.pop("sum", {})},
        },
        "training": {"steps": 1 if shared else 2, "lr": 0.1, "lot": "all",
                     "momentum": 0 if shared else 0.9},
        "export": "gradient_sum" if shared else "weights",
        "strategy": {"name": "fed_avg"},
        **changes,
    }  # fmt: skip
    return Study.model_validate({k: v for k, v in whole.items() if k != "distillation"})


def small_hospitals(folder: Path, names: Sequence[str], patients: int = 8) -> list[Path]:
    """Return the folders of made-up hospitals with few patients and a large budget."""
    scanner = ((20.0, 300.0, 620.0, 480.0), 30, "RAS")
    wards = make_wards(folder, 0, [Scanner(name, patients, *scanner) for name in names])
    for ward in wards:
        change_yaml(
            ward / "site.yaml", declared_patients=12, min_patients=3, min_evaluation_patients=1,
            budget={"epsilon": 100.0, "delta": 1e-3},
        )  # fmt: skip
    return wards


@dataclass
class Consortium:
    """A run that has begun, with everything that a test may ask of it.

    Attributes:
        silent: by phase, the hospitals that do not answer.
        alter: changes each order before a hospital gets it.
    """

    run: Run
    hospitals: Mapping[str, Hospital]
    models: list[P.Params]
    silent: dict[str, Collection[str]] = field(default_factory=dict)
    alter: Alter = lambda order: order

    @classmethod
    def begin(cls, folder: Path, study: Study, wards: Sequence[Path]) -> "Consortium":
        introduce(wards)
        opened = [Hospital.open(ward, test_noise=SEED) for ward in wards]
        hospitals = {hospital.name: hospital for hospital in opened}
        home = Home(folder / "home")
        run = Run.create(home, study, {s: h.public_key for s, h in hospitals.items()}, home.exchange)
        run.begin_attempt()
        self = cls(run, hospitals, [])
        joined = self.ask(run, 0, "join", sorted(hospitals))
        self.run = run.with_participants(participants(run, joined), joined.absent)
        start = start_of(self.run)
        self.models.append(start.params)
        self.finish(0, NO_ANSWERS, start.record)
        return self

    def ask(self, run: Run, number: int, phase: Phase, sites: Sequence[str]) -> Answers:
        for site in sites:
            if site not in self.silent.get(phase, ()):
                carry_out(
                    self.hospitals[site], self.alter(order(run, number, phase, site)), ignore_progress
                )
        return answers(run, number, phase, sites)

    def contribute(self, number: int) -> Answers:
        return secure_sum.contribute(self.run, number, self.run.records()[-1], self.ask)

    def round(self, number: int) -> RoundRecord:
        taken = self.contribute(number)
        self.models.append(aggregation.aggregate(self.run, number, self.run.records()[-1], taken))
        return self.finish(number, taken)

    def finish(self, number: int, taken: Answers, start: StartRecord | None = None) -> RoundRecord:
        sha256 = publish_model(self.run, number, self.models[number])
        scores = NO_ANSWERS
        if self.run.study.evaluation.summed and self.run.study.is_evaluated(number):
            scores = figures.ask_scores(self.run, number, sha256, self.ask)
        record = round_record(self.run, number, sha256, taken, scores, 0, start=start)
        self.run.keep(record)
        self.run.publish_head(record)
        return record

    def hospitals_by_hand(self, number: int) -> dict[str, by_hand.Hospital]:
        """Return the hospitals as the slow twin takes them, with the noise that they draw in a round."""
        study, found = self.run.study, {}
        for site, hospital in sorted(self.hospitals.items()):
            examples = prepare(
                hospital.cohort(study).training, study.preprocessing, torch.device("cpu"), seed=0
            )
            drawn = [examples.draw(i, 0) for i in range(len(examples))]
            prepared = [list(zip(images, labels[:, None], strict=True)) for images, labels in drawn]
            noise = NoiseSource.for_test(SEED, f"{site} {study.sha256} {number}")
            found[site] = by_hand.Hospital(prepared, hospital.policy.declared_training, noise)
        return found
