"""The first model of a run: the stages of a study's start, one after the other, from public material.

The same study and material make the same bits on any machine, so that `wardround verify` can make the
model again. What a machine has made once it remembers by the hashes of everything that the model depends
on (`.wardround/starts/`).
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flows.runs.paths import Home
from flows.runs.records import StageRecord, StartRecord
from flows.runs.run import Run
from flows.starts.measures import cases_of_pool, loss_of, scored
from flows.starts.public_sets import Case, PublicSet, label_maps, material_sha256, public_set
from flows.starts.rate import with_rate
from flows.starts.tolerance import ON_DRAWN, ON_SCANS, tolerance
from flows.starts.weights import load_weights
from models import checkpoints
from models import params as P
from models.files import sha256_of, write_atomically
from models.label_maps import image_of_map
from models.objectives import build_task
from models.pretraining import Batch, from_pool, pretrain, tube_maker
from models.repeatable import one_thread
from models.settings.starts import LabelMapStart, PublicStart, StartStage, SyntheticStart
from privacy.signing import canonical
from sites.code_version import code_sha256
from sites.exchange.exchange import COORDINATOR
from sites.imaging.preprocessing import Pair, drawn_pairs
from sites.study import Study

UNSEEN = 24
"""Number of drawn images, beside those of the training, on which a stage is measured."""


@dataclass(frozen=True)
class Start:
    """A first model, and how it was made."""

    params: dict[str, Tensor]
    record: StartRecord


def first_model(study: Study, home: Home) -> Start:
    """Return the parameters before training: drawn from the seed, then trained or loaded stage by stage.

    Raises:
        NoStart: the material of a stage is missing, or does not fit the study.
    """
    if not study.start:
        return _made(study, home)
    key = _key(study, home)
    if (known := _remembered(home, key)) is not None:
        return known
    with one_thread():
        made = _made(study, home)
    _remember(home, key, made)
    return made


def start_of(run: Run) -> Start:
    """Return the first model of a run, and with it the strength of its signal and its learning rate."""
    made = first_model(run.study, run.home)
    return Start(made.params, with_rate(run, made.record, P.numel(made.params)))


def publish_cases(run: Run) -> None:
    """Publish the hashes of the run's public cases, for hospitals to look for their own patients."""
    contents = public_contents(run.study, run.home)
    if contents:
        data = canonical(contents)
        run.exchange.put_object(data, COORDINATOR)
        write_atomically(run.public_cases_path, data)


def check_start(study: Study, home: Home) -> None:
    """Raise `NoStart` unless the material of every stage, and the validation cases, fit the study.

    Nothing is trained. Weights are loaded, to compare names and shapes.
    """
    network = untrained(study)
    for stage in study.start:
        if isinstance(stage, LabelMapStart):
            label_maps(home.public, stage.folder, study)
        elif isinstance(stage, PublicStart):
            public_set(home.public, stage.folder, study)
        elif not isinstance(stage, SyntheticStart):
            load_weights(network, stage, study, home)
    if study.validation:
        public_set(home.public, study.validation.folder, study)


def public_contents(study: Study, home: Home) -> list[str]:
    """Return the hashes of the voxels of all public cases, by which hospitals find their patients."""
    names = {stage.folder for stage in study.start if isinstance(stage, PublicStart)}
    if study.validation:
        names.add(study.validation.folder)
    return sorted({each for name in names for each in public_set(home.public, name, study).contents})


def _made(study: Study, home: Home) -> Start:
    """Return the first model of the last stage, from that of the stages before it."""
    network, task = untrained(study), build_task(study.task)
    validation = public_set(home.public, study.validation.folder, study) if study.validation else None
    cases: list[Case] = validation.cases if validation else []
    stages: tuple[StageRecord, ...] = ()
    if study.start:
        before = first_model(study.model_copy(update={"start": study.start[:-1]}), home)
        P.load_into(network, before.params)
        stage, number = study.start[-1], len(study.start) - 1
        seed = study.seed_for(0, str(number), "start")
        source, own = _run_stage(network, stage, study, home, seed)
        cases = cases or own
        record = StageRecord(
            kind=stage.kind,
            source=source,
            model_sha256=checkpoints.digest(P.of(network)),
            measured_on=_measured_on(validation, stage),
            reached=scored(network, study, cases) if cases else {},
        )
        stages = (*before.record.stages, record)
    is_drawn = not validation and bool(study.start) and not isinstance(study.start[-1], PublicStart)
    factor = ON_DRAWN if is_drawn else ON_SCANS
    bearable = (
        tolerance(network, lambda net: loss_of(net, task, study, cases), factor) if cases else None
    )
    return Start(P.of(network), StartRecord(stages=stages, tolerance=bearable))


def _measured_on(validation: PublicSet | None, stage: StartStage) -> str:
    if validation:
        return "public validation cases"
    if isinstance(stage, PublicStart):
        return "its own training cases"
    if isinstance(stage, SyntheticStart | LabelMapStart):
        return "drawn images"
    return ""


def untrained(study: Study) -> nn.Module:
    """Return the study's network with parameters drawn from its seed, as every start begins."""
    with torch.random.fork_rng():
        torch.manual_seed(study.seed_for(0, "", "first model"))
        return study.built()


def _run_stage(
    network: nn.Module, stage: StartStage, study: Study, home: Home, seed: int
) -> tuple[str, list[Case]]:
    """Train or load `network`, in place; return the hash of the material, and cases to measure on."""
    if isinstance(stage, SyntheticStart | LabelMapStart):
        return _learn_drawn(network, stage, study, home, seed)
    if isinstance(stage, PublicStart):
        return _learn_public(network, stage, study, home, seed)
    return load_weights(network, stage, study, home), []


def _learn_drawn(
    network: nn.Module,
    stage: SyntheticStart | LabelMapStart,
    study: Study,
    home: Home,
    seed: int,
) -> tuple[str, list[Case]]:
    """Train on images that are drawn from shapes or label maps."""
    shape, num_labels = study.preprocessing.shape, len(study.task.labels)
    channels = study.task.in_channels
    source, make = "", tube_maker(shape, num_labels, study.synthesis, channels)
    if isinstance(stage, LabelMapStart):
        source, maps = label_maps(home.public, stage.folder, study)
        look = stage.look

        def make(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            drawn = maps[rng.integers(len(maps))]
            return image_of_map(drawn, shape, num_labels, rng, look, channels)

    draw, _ = from_pool(make, stage.images, stage.batch, seed)
    pretrain(network, build_task(study.task).loss, draw, stage.steps, stage.lr)
    _, unseen = from_pool(make, UNSEEN, 1, seed + 1)
    return source, cases_of_pool(unseen)


def _learn_public(
    network: nn.Module, stage: PublicStart, study: Study, home: Home, seed: int
) -> tuple[str, list[Case]]:
    """Train on labelled public cases with random changes; each patient is as likely as another."""
    found = public_set(home.public, stage.folder, study)
    config = study.preprocessing.model_copy(update={"augmentation": stage.augmentation})
    rng = torch.Generator().manual_seed(seed)

    def draw(_: int) -> Batch:
        pairs: list[Pair] = []
        while len(pairs) < stage.batch:
            patient = found.patients[_below(len(found.patients), rng)]
            scan = patient.scans[_below(len(patient.scans), rng)]
            pairs += drawn_pairs(scan.load(), config, _below(2**31, rng))
        images, targets = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(targets)

    pretrain(network, build_task(study.task).loss, draw, stage.steps, stage.lr)
    return found.sha256, found.cases


def _below(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=rng))


def _key(study: Study, home: Home) -> str:
    """Return a hash of everything that the first model depends on."""
    facts = study.model_dump(
        mode="json",
        include={"task", "network", "preprocessing", "synthesis", "start", "validation", "seed"},
    )
    del facts["preprocessing"]["augmentation"]  # that of patients' scans
    sources = [_source(stage, study, home) for stage in study.start]
    if study.validation:
        sources.append(material_sha256(home.public, study.validation.folder))
    return sha256_of(canonical([facts, sources, code_sha256(), torch.__version__]))


def _source(stage: StartStage, study: Study, home: Home) -> str:
    if isinstance(stage, SyntheticStart):
        return ""
    if isinstance(stage, LabelMapStart | PublicStart):
        return material_sha256(home.public, stage.folder)
    return load_weights(untrained(study), stage, study, home)


def _remembered(home: Home, key: str) -> Start | None:
    path = home.state / "starts" / f"{key}.json"
    try:
        known = json.loads(path.read_bytes())
        params = checkpoints.read(path.with_suffix(".safetensors"), known["sha256"])
        return Start(
            {name: params[name] for name in params}, StartRecord.model_validate(known["record"])
        )
    except (OSError, ValueError, KeyError):
        return None


def _remember(home: Home, key: str, made: Start) -> None:
    path = home.state / "starts" / f"{key}.json"
    sha256 = checkpoints.write(path.with_suffix(".safetensors"), made.params)
    content = {"sha256": sha256, "record": made.record.model_dump(mode="json")}
    write_atomically(path, canonical(content))
