"""What has to hold among the sections of a study; a rule yields where it does not."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from models.settings.images import Patches
from models.settings.starts import start_faults
from sites.study_sections import check_network, eight_bit_faults, promotion_faults, sum_faults

if TYPE_CHECKING:
    from sites.study import Study


def images_fit_the_task(study: "Study") -> Iterator[str]:
    """Yield faults unless shapes, spacings and changes of images fit the dimensions of the task."""
    dims, kind = study.task.dims, study.task.kind
    for key, sides in (
        ("preprocessing.shape", study.preprocessing.shape),
        ("preprocessing.spacing_mm", study.preprocessing.spacing_mm),
        ("synthesis.along", study.synthesis.along),
    ):
        if sides is not None and len(sides) != dims:
            yield (f"{key}: expected task.dims = {dims} numbers, got {list(sides)}.")
    augmentation = study.preprocessing.augmentation
    if augmentation and augmentation.drop_channel and study.task.missing_channel != "zeros":
        yield (
            "preprocessing.augmentation.drop_channel: expected 0 unless task.missing_channel is zeros."
        )
    if augmentation and any(axis >= dims for axis in augmentation.flip):
        yield (
            f"preprocessing.augmentation.flip: expected axes below {dims}, "
            f"got {list(augmentation.flip)}."
        )
    if isinstance(study.preprocessing.fit, Patches) and kind != "segmentation":
        yield ("preprocessing.fit: expected patches for segmentation only.")


def start_fits(study: "Study") -> Iterator[str]:
    """Yield faults unless stages of the start fit the task, and validation cases what leaves."""
    yield from start_faults(study.start, study.task.kind, study.preprocessing.fit)
    if study.validation and study.export == "predictions":
        yield ("validation: expected none where predictions leave; the next model learns from them.")


def rate_can_be_found(study: "Study") -> Iterator[str]:
    """Yield faults if a learning rate can't be found, or the optimizer does not fit the privacy."""
    training = study.training
    if training.lr == "auto":
        if not study.clips_patients:
            yield (
                "training.lr: expected a number where training is plain (without privacy, or with "
                "privacy.unit: hospital), got auto."
            )
        known = ("fed_avg", "fed_avg_m") if study.export == "gradient_sum" else ("fed_avg",)
        if study.strategy.name not in known:
            yield (
                f"training.lr: expected a number with {study.strategy.name}; auto knows how noise "
                f"adds up under {' and '.join(known)} alone."
            )
        last = study.start[-1].kind if study.start else ""
        if last not in ("synthetic", "label_maps", "public") and not study.validation:
            yield (
                "training.lr: expected a number, validation cases, or a start whose last stage has "
                "cases on which auto can measure the noise that a model bears."
            )
    if study.clips_patients and (training.optimizer != "sgd" or training.longest_gradient):
        yield (
            "training: expected sgd without longest_gradient under privacy, which clips each "
            "patient's gradient."
        )


def networks_fit_the_images(study: "Study") -> Iterator[str]:
    """Yield faults unless networks fit the task and the images."""
    networks = {"network": study.network}
    if study.distillation and study.distillation.teacher:
        networks["distillation.teacher"] = study.distillation.teacher
    for key, network in networks.items():
        try:
            check_network(study.task, study.preprocessing, key, network)
        except ValueError as fault:
            yield str(fault)


def numbers_have_no_classes(study: "Study") -> Iterator[str]:
    """Yield faults unless a task of numbers asks for nothing that needs classes."""
    if study.task.kind != "regression":
        return
    if study.distillation or study.training.membership:
        yield (
            "task: expected no distillation and no training.membership with regression; both work "
            "on the probabilities of classes. Take export: weights or gradient_sum."
        )


def sum_is_sound(study: "Study") -> Iterator[str]:
    """Yield faults unless secure sums have what they need."""
    faults = sum_faults(
        study.privacy, export=study.export, strategy=study.strategy, training=study.training,
        sites=study.sites, evaluation=study.evaluation, survey=study.survey,
    )  # fmt: skip
    yield from faults


def export_has_what_it_needs(study: "Study") -> Iterator[str]:
    """Yield faults unless what leaves has what it needs."""
    distils_at_hospitals = study.export in ("student", "predictions")
    if not study.shares_noise and distils_at_hospitals != (study.distillation is not None):
        yield (
            "distillation: expected exactly where export is student or predictions; add it, or "
            "export weights."
        )
    distils = study.distillation
    waits = distils is not None and distils.rounds == "last"
    if study.shares_noise and distils and (distils.teacher or not waits):
        yield (
            "distillation: expected rounds: last and no teacher with shared_noise; only the last "
            "global model distils."
        )
    if waits and (study.export == "predictions" or (distils and distils.teacher)):
        yield (
            "distillation.rounds: expected every where predictions leave or another network "
            "teaches; before the last round the trained weights would leave."
        )
    if study.export == "predictions" and study.strategy.name != "fed_avg":
        yield (
            f"strategy: expected fed_avg where predictions leave, as they are combined into one "
            f"ensemble, got {study.strategy.name}."
        )
    if study.export == "predictions" and study.sites.staleness:
        yield (
            "sites.staleness: expected none where predictions leave, which each round combines "
            "into one ensemble; remove it."
        )
    if study.evaluation.teachers and (study.shares_noise or not study.distillation):
        yield ("evaluation.teachers: expected false; no hospital distils a teacher.")
    if study.evaluation.cross_site and study.export == "predictions":
        yield ("evaluation.cross_site: expected false; no model leaves with predictions.")


def strategy_fits(study: "Study") -> Iterator[str]:
    """Yield faults unless the strategy fits the network, the hospitals and the training."""
    strategy = study.strategy.build()
    try:
        study.bound_strategy()
    except ValueError as error:
        yield (f"strategy: {study.strategy.name}: {error}; take another network.")
    if study.sites.min < strategy.fewest:
        yield (
            f"sites.min: expected at least {strategy.fewest}, which {study.strategy.name} needs, "
            f"got {study.sites.min}."
        )
    if strategy.counts_steps and study.export != "weights":
        yield (
            f"strategy: expected {study.strategy.name} with export: weights only; how far a student "
            f"moves does not depend on its teacher's steps."
        )
    lr = study.training.lr
    most = 2 * (1 + study.training.momentum) / (1.0 if lr == "auto" else lr)
    if strategy.pull >= most:
        yield (
            f"strategy: expected a pull below {most:g}, got {strategy.pull:g}. Steps of this "
            f"rate would overshoot; choose a weaker pull or a smaller training.lr."
        )
    if strategy.corrects and study.distillation and study.distillation.teacher:
        yield (
            "strategy: expected no distillation.teacher with scaffold, whose corrections have the "
            "shapes of the study's own network; remove it."
        )
    if study.sites.staleness and (not strategy.weighs or strategy.corrects):
        yield (
            f"sites.staleness: expected none with {study.strategy.name}, which can't give late "
            f"releases a smaller weight; remove it."
        )
    if strategy.corrects and study.training.fewest_steps is not None:
        yield (
            "training.fewest_steps: expected none with scaffold, whose common variate needs equal "
            "numbers of steps; remove it."
        )
    if study.training.membership and study.privacy.mode != "none":
        yield (
            "training.membership: expected none under differential privacy; its attacker learns "
            "from patients without noise, and no charge covers that."
        )


def bits_are_enough(study: "Study") -> Iterator[str]:
    """Yield faults unless releases in eight bits are of a kind that can be rounded."""
    if study.release_bits == 8:
        yield from eight_bit_faults(study.export, study.strategy, is_summed=study.is_summed)


def promotion_is_measured(study: "Study") -> Iterator[str]:
    """Yield faults unless the criteria of a release are measured."""
    is_private, is_summed = study.privacy.mode != "none", study.evaluation.summed is not None
    yield from promotion_faults(study.promotion, study.task, is_private=is_private, is_summed=is_summed)


RULES = (
    images_fit_the_task,
    start_fits,
    rate_can_be_found,
    networks_fit_the_images,
    numbers_have_no_classes,
    sum_is_sound,
    export_has_what_it_needs,
    strategy_fits,
    bits_are_enough,
    promotion_is_measured,
)


def faults_of(study: "Study") -> list[str]:
    """Return what does not hold in a study, everything at once."""
    faults: list[str] = []
    for rule in RULES:
        try:
            faults.extend(rule(study))
        except Exception:
            if not faults:  # else it stumbled over a fault that is told already
                raise
    return faults
