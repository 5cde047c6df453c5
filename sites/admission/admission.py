"""Admission of a study by a hospital's policy and list; a study can never widen the policy.

What leaves without a charge depends on the policy, the list and the study alone, never on what a scan
shows (docs/decisions/0014).
"""

import time

from models.networks.choice import NetworkConfig
from models.settings.tasks import TaskConfig
from privacy.ledger import Charge
from privacy.ledger_book import is_kind
from privacy.mechanisms import MaskedPrivacy, Mechanism, SharedNoise, mechanism_for
from sites.admission.free_answers import WEEK_S, free_answers, is_free, joined_runs
from sites.exchange.phases import SUM_MESSAGES, SUMS
from sites.hospital import Hospital
from sites.listing.cases import Listing, plain_name
from sites.orders import Order, sum_of
from sites.policy.policy import NoisedStatistics, Policy, Refused
from sites.study import Study
from sites.study_sections import check_network
from sites.training.config import TrainingConfig


def admit(policy: Policy, study: Study) -> None:
    """Raise `Refused` with the reason if the hospital's own limits do not allow the study."""
    teacher = teacher_for(policy, study)
    for network in (study.network, teacher):
        if network and network.name not in policy.networks:
            raise Refused(
                f"network {network.name} is not among those that the policy allows: "
                f"{', '.join(policy.networks)}"
            )
    _check_teacher(study, teacher)
    training_for(policy, study)
    if study.privacy.mode == "none":
        if policy.plain_studies == "refuse":
            raise Refused(
                "the study trains without differential privacy and the policy has plain_studies: refuse"
            )
        return
    if study.samples_patients and policy.sampled_steps == "refuse":
        raise Refused(
            "the study samples patients for its steps and the policy has sampled_steps: refuse"
        )
    if isinstance(study.privacy, SharedNoise):
        check_shared_noise(policy, study.privacy)
    for key in ("epsilon", "delta"):
        asked, allowed = getattr(study.privacy, key), getattr(policy.budget, key)
        if asked > allowed:
            raise Refused(f"the study asks for {key} {asked:g}, the policy allows {allowed:g}")
    if study.privacy.delta >= 1 / policy.declared_training:
        raise Refused("the study's delta is not below one over the declared training patients")


def check_shared_noise(policy: Policy, privacy: SharedNoise | MaskedPrivacy) -> None:
    """Raise `Refused` if the policy allows no sum with a share of the noise alone, or not this one."""
    if policy.shared_noise == "refuse":
        raise Refused(
            "the study's noise is shared by the hospitals and the policy has shared_noise: refuse"
        )
    if privacy.sum.colluding < policy.shared_noise.colluding:
        raise Refused(
            f"the study expects {privacy.sum.colluding} colluding hospitals, the policy's shared_noise "
            f"at least {policy.shared_noise.colluding}"
        )


def check_list(hospital: Hospital, study: Study, *, for_survey: bool = False) -> None:
    """Raise `Refused` if the hospital's list does not fit a study; no scan is opened.

    The text contains no count and no case.

    Args:
        for_survey: the list may be without labels.
    """
    if not (for_survey and hospital.listing.is_unlabelled):
        check_labels(hospital.listing, study.task)
    check_channels(hospital.current, study.task)
    training = len(hospital.eligible.training)
    if training < hospital.policy.min_patients:
        raise Refused("fewer training patients are listed than the policy's min_patients")
    if study.training.membership and training < 2:
        raise Refused("the hospital has too few patients for training.membership")


def check_labels(listing: Listing, task: TaskConfig, owner: str = "hospital") -> None:
    """Raise `Refused` unless a list has the kind, the values and the names of a task's labels.

    Args:
        owner: whose list it is, for the message.
    """
    if listing.is_unlabelled:
        raise Refused(f"the {owner}'s list has no labels: it can be surveyed, but not train or evaluate")
    has = "classes" if listing.has_classes else "values" if listing.has_values else "label images"
    if has != {"classification": "classes", "regression": "values"}.get(task.kind, "label images"):
        raise Refused(f"the study is a {task.kind}, the {owner}'s list has {has}")
    if task.kind == "classification" and task.multi_label != listing.has_several:
        asked, has = (
            "any number of classes" if several else "one class"
            for several in (task.multi_label, listing.has_several)
        )
        raise Refused(f"the study's cases have {asked}, those of the {owner}'s list {has}")
    if listing.structures:
        _check_masks(listing, task, owner)
        return
    for value in sorted(set(listing.labels) & set(task.labels)):
        if listing.labels[value] and plain_name(listing.labels[value]) != plain_name(task.labels[value]):
            raise Refused(
                f"label {value} is {plain_name(listing.labels[value])} in the {owner}'s list and "
                f"{task.labels[value]} in the study; the names must be the same"
            )
    background = {0} if task.kind == "segmentation" else set()
    if set(listing.labels) - background != set(task.labels):
        raise Refused(
            f"the study's labels {sorted(task.labels)} differ from those of the {owner}'s data, "
            f"{sorted(set(listing.labels) - background)}"
        )


def _check_masks(listing: Listing, task: TaskConfig, owner: str) -> None:
    by_map = set(listing.structures.values())
    by_name = {name for name, value in listing.structures.items() if value is None}
    for value, name in sorted(task.labels.items()):
        if value and value not in by_map and plain_name(name) not in by_name:
            raise Refused(
                f"the {owner}'s list has no masks of {name}; `label_map` in site.yaml gives the list's "
                f"own names"
            )


def check_channels(listing: Listing, task: TaskConfig, owner: str = "hospital") -> None:
    """Raise `Refused` if a list lacks channels that a task does not let it lack.

    The text names the study's channels alone.
    """
    cases = [case.images for case in listing.cases]
    for name in task.channel_names:
        has = sum(name in images for images in cases)
        where = "`channels` in site.yaml names the list's own name of a channel"
        if not has and task.missing_channel != "zeros":
            raise Refused(f"no case of the {owner}'s list has the study's channel {name}; {where}")
        if has < len(cases) and task.missing_channel == "refuse":
            raise Refused(f"not every case of the {owner}'s list has the study's channel {name}")
    if not any(set(task.channel_names) & set(images) for images in cases):
        raise Refused(f"no case of the {owner}'s list has a channel of the study")


def lacking(listing: Listing, task: TaskConfig) -> tuple[str, ...]:
    """Return the channels of a task that no case of a list has."""
    return tuple(name for name in task.channel_names if name not in listing.channels)


def check_filter(hospital: Hospital, study: Study) -> None:
    """Raise `Refused` if the study samples patients and the ledger's filter can't count that."""
    if study.samples_patients and hospital.ledger.rule == "gaussian":
        raise Refused(
            "the study samples patients for its steps; this hospital's ledger began with "
            "sampled_steps: refuse, and its rule can't change"
        )


def has_enough_surveys(hospital: Hospital, act: Charge, policy: NoisedStatistics) -> bool:
    """Return whether the policy allows no further noised survey, of this study or this week."""
    charged = [
        entry
        for entry in hospital.ledger.entries()
        if entry.action == "reserve"
        and is_kind(entry.charge.purpose, "survey")
        and (entry.charge.run, entry.charge.round) != (act.run, act.round)
    ]
    of_study = sum(entry.charge.study == act.study for entry in charged)
    this_week = sum(entry.at > time.time() - WEEK_S for entry in charged)
    return of_study >= policy.per_study or this_week >= policy.per_week


def check_free_answers(hospital: Hospital, order: Order) -> None:
    """Raise `Refused` if the policy allows no further answer of this kind this week."""
    most = hospital.policy.free_answers_per_week
    has_joined = order.run in joined_runs(hospital.ledger.entries())
    is_summed = order.sum is not None and order.phase == order.sum_phases.vector
    if is_summed or not is_free(order.phase, has_joined):
        return
    if free_answers(hospital) >= most:
        raise Refused(
            f"the hospital answers at most {most} orders in seven days that cost nothing "
            f"(free_answers_per_week)"
        )


def check_round(order: Order) -> None:
    """Raise `Refused` if the study has no such round: a person approved its rounds and no others."""
    kind = sum_of(order.study, order.phase)
    is_first = order.phase in ("check", "survey", "join", "evaluate") or kind in ("metrics", "survey")
    first = 0 if is_first else 1
    if not first <= order.round <= order.study.rounds:
        raise Refused(
            f"the order is for round {order.round}; the study has rounds {first} to "
            f"{order.study.rounds} for {order.phase}"
        )
    if order.phase in SUM_MESSAGES and kind is None:
        raise Refused(f"the study has no secure sum that {order.phase} is part of")
    if order.sum and kind in ("metrics", "survey") and order.sum.attempt != 1:
        raise Refused("a sum of figures has one attempt")
    if kind == "survey" and order.round:
        raise Refused("a survey has one round")
    if (order.sum is not None) != (kind is not None):
        raise Refused(
            "the order is of a secure sum where the study has none, or of none where it has one"
        )
    if order.phase in SUMS["metrics"] and not order.study.is_evaluated(order.round):
        raise Refused(f"the study evaluates no model in round {order.round}")
    if order.phase == "compare" and not order.study.is_compared(order.round):
        raise Refused(f"the study compares no models in round {order.round}")


def teacher_for(policy: Policy, study: Study) -> NetworkConfig | None:
    """Return the network that trains as the teacher at this hospital; None for the study's own.

    Where trained weights leave in all rounds but the last, every hospital trains the study's own.
    """
    if study.distillation is None or study.distillation.rounds == "last":
        return None
    if policy.teacher and policy.teacher.kind == study.task.kind:
        return policy.teacher
    return study.distillation.teacher


def training_for(policy: Policy, study: Study) -> TrainingConfig:
    """Return this hospital's training configuration; raise `Refused` if it would need too many steps.

    The policy's `device.most_steps` lowers the number of steps as far as the study allows.
    """
    most, fewest = policy.device.most_steps, study.training.fewest_steps
    if most is None or most >= study.training.steps:
        return study.training
    if fewest is None or most < fewest:
        raise Refused(
            f"the study takes {study.training.steps} steps a round, at least "
            f"{fewest or study.training.steps}; the policy's device.most_steps allows {most}"
        )
    return study.training.model_copy(update={"steps": most})


def mechanism_for_study(policy: Policy, study: Study) -> Mechanism | None:
    """Return a study's mechanism at this hospital, None without privacy; `Refused` if it fits none."""
    if study.privacy.mode == "none":
        return None
    try:
        return mechanism_for(
            study.privacy,
            rounds=study.rounds,
            steps=training_for(policy, study).steps,
            lot=study.training.lot_size,
            declared=policy.declared_training,
        )
    except ValueError as error:
        raise Refused(f"the study does not fit this hospital: {error}") from error


def _check_teacher(study: Study, teacher: NetworkConfig | None) -> None:
    if teacher is None:
        return
    if study.strategy.build().corrects:
        raise Refused("the hospital's own teacher does not have the shapes that scaffold corrects")
    try:
        check_network(study.task, study.preprocessing, "teacher", teacher)
    except ValueError as error:
        raise Refused(f"the hospital's own teacher does not fit the study: {error}") from error
