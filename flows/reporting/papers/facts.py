"""Facts of a run in plain sentences, each from the record alone; empty where nothing is recorded."""

from collections.abc import Iterator, Mapping, Sequence

from flows.audits.records import AuditRecord, newest_audit
from flows.decisions import chain, release_status
from flows.reporting.glance import good_at, privacy_costs, worse_at
from flows.reporting.report import contents_of
from flows.runs.records import RoundRecord, newest_scored
from flows.runs.run import Run
from flows.starts.rate import declared_in, warnings
from flows.tracking.metrics import by_group, fairness
from models.settings.images import Patches
from models.settings.metrics import metric_names
from models.settings.tasks import RGB
from sites.local_models import numel_of
from sites.study import Study

CHOSEN = (
    "The last model is the best, on public cases, of all rounds and of the way back to the start; "
    "the start where none is better by more than one standard error."
)
ENSEMBLE = "The hospitals' predictions are averaged and distilled into one network."
ALWAYS = {
    "partition": "By a keyed hash of the patient at each hospital, the same in every study: evaluation "
    "patients never train.",
    "disjoint": "The patient: all scans of one person are in one part.",
    "eligibility": "Each hospital's list, less the patients in its excluded.csv; a hospital takes part "
    "with at least as many patients as its policy asks for.",
    "interface": "A command line, an MLflow model and a MONAI bundle; masks as NIfTI or DICOM SEG, "
    "probabilities as JSON.",
    "updating": "None automatic: a new model is a new release, which people approve; `wardround survey` "
    "reports drift of the hospitals' scans.",
    "architecture": "A coordinator sends signed orders; each hospital trains within its own policy and "
    "ledger and sends signed releases; the coordinator combines them (docs/architecture.md).",
    "security": "Every statement is signed (Ed25519) and chained; nothing is unpickled; hospitals open "
    "no port; TLS outside one machine (SECURITY.md, docs/threat-model.md).",
    "sample_size": "",
    "resources": "",
}
"""What holds for every run, by the software itself; empty where no run records it."""


def facts(run: Run) -> Mapping[str, str]:
    """Return a run's facts by name, as checklists ask for them."""
    records, study = run.records(), run.study
    return {
        **ALWAYS,
        **_stated(study),
        **_of_study(study),
        **_of_people(run, records),
        **_of_results(run, records),
        **_of_software(run, records),
    }


def _stated(study: Study) -> dict[str, str]:
    """Return what the study's authors have written in its card."""
    card = study.card
    return {
        "purpose": study.purpose,
        "intended_use": card.intended_use,
        "intended_users": card.intended_users and f"Users: {card.intended_users}",
        "out_of_scope": card.out_of_scope and f"Not for: {card.out_of_scope}",
        "factors": card.factors,
        "training_data": card.training_data,
        "ethics": card.ethical_considerations,
        "caveats": card.caveats,
        "authors": ", ".join(filter(None, (card.authors, card.contact))),
    }


def _of_study(study: Study) -> dict[str, str]:
    task, training = study.task, study.training
    fills = task.missing_channel == "zeros"
    lacking = "replaced by zeros" if fills else "a reason to leave the case out"
    channels = "red, green, blue" if task.channels == RGB else ", ".join(task.input_names)
    answer = "A number" if task.kind == "regression" else f"Probabilities of {_labels(study)}"
    chooses = study.validation is not None and study.validation.choose
    return {
        "method": _method(study),
        "model": f"{study.network.name} of MONAI with {numel_of(study):,} parameters: "
        f"{_settings(study.network.model_dump(mode='json', exclude_defaults=True))}.",
        "inputs": f"Channels: {channels}.",
        "outputs": f"{answer}.",
        "labels": f"{_labels(study)}, as the hospitals' own lists have them; how they were made is "
        f"not recorded.",
        "training": f"{study.rounds} rounds of {training.steps} steps: "
        f"{_settings(training.model_dump(mode='json', exclude_defaults=True))}.",
        "privacy": _mechanism(study),
        "selection": CHOSEN if chooses else "The model of the last round.",
        "ensembling": ENSEMBLE if study.export == "predictions" else "None: one network.",
        "metrics": f"{', '.join(sorted(metric_names(task)))}; a patient counts once.",
        "missing_data": "A scan that can't be used is left out and named at its hospital; a missing "
        f"channel is {lacking}; an evaluation patient without a usable scan counts as a miss.",
        "deidentification": f"No image leaves its hospital. What leaves is {contents_of(study)}, "
        f"signed; the threat model lists every field.",
        "protocol": f"The study file, sha256 {study.sha256}; every round is in a hash chain.",
        **_of_images(study),
    }


def _of_images(study: Study) -> dict[str, str]:
    steps = study.preprocessing
    augmentation = steps.augmentation
    kept = steps.model_dump(mode="json", exclude={"augmentation", "fit"}, exclude_none=True)
    changes = augmentation.model_dump(mode="json", exclude_defaults=True) if augmentation else {}
    is_cut = isinstance(steps.fit, Patches)
    return {
        "preprocessing": f"Scans are turned to one orientation, resampled and scaled: "
        f"{_settings(kept)}.",
        "augmentation": f"Random changes of training images: {_settings(changes)}." if changes else "",
        "patches": f"Patches: {_settings(steps.fit.model_dump(mode='json'))}."
        if isinstance(steps.fit, Patches)
        else "Whole scans, fitted to the training shape.",
        "prediction": "`wardround predict`, or the exported MONAI bundle, on the scan's own grid"
        f"{', by windows that slide over the image' if is_cut else ''}.",
    }


def _method(study: Study) -> str:
    privacy = study.privacy
    private = "" if privacy.mode == "none" else f", with differential privacy for each {privacy.unit}"
    return (
        f"{study.network.name}, a deep network, for {study.task.kind} in {study.task.dims}D, trained by "
        f"federated learning ({study.strategy.name}){private}."
    )


def _labels(study: Study) -> str:
    return ", ".join(study.task.labels.values()) if study.task.kind != "regression" else "A number"


def _settings(values: Mapping[str, object]) -> str:
    """Return settings in one line.

    >>> _settings({"steps": 4, "lr": 0.1, "kind": None})
    'steps 4, lr 0.1'
    """
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items() if value is not None)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return f"({_settings(value)})"
    if isinstance(value, list | tuple):
        return "x".join(map(_plain, value))
    return str(value)


def _mechanism(study: Study) -> str:
    privacy = study.privacy
    if privacy.mode == "none":
        return "Without differential privacy."
    bounded = "gradient for each patient" if study.clips_patients else "change of each hospital"
    return (
        f"Epsilon {privacy.epsilon:g} at delta {privacy.delta:g} for each {privacy.unit} over the "
        f"whole run ({privacy.mode}): one {bounded}, clipped, with Gaussian noise; each hospital's "
        f"ledger refuses what exceeds its budget."
    )


def _of_people(run: Run, records: Sequence[RoundRecord]) -> dict[str, str]:
    members = run.description.everybody
    patients = {site: member.statement for site, member in sorted(members.items())}
    absent = list(_absences(run, records))
    decisions = [v for link in chain.decisions(run) if (v := link.verdict)]
    return {
        "hospitals": f"{len(members)} hospitals: {', '.join(sorted(members))}." if members else "",
        "patients": "; ".join(
            f"{site}: {each.declared_patients} patients declared, {each.declared_training} of them train"
            for site, each in patients.items()
        ),
        "absences": "; ".join(absent),
        "oversight": "A clinician and a data-protection officer approve each release with their own "
        f"keys; an approval expires. So far: {release_status.in_words(chain.decisions(run))}.",
        "decisions": "; ".join(
            f"{v.word} by {v.person} ({v.role}), round {v.terms.round}" for v in decisions
        ),
    }


def _absences(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    for site, why in sorted(run.description.refused.items()):
        yield f"{site}, before the start: {why}"
    for record in records:
        for site, why in record.absences("release").items():
            yield f"{site}, round {record.round}: {why}"


def _of_results(run: Run, records: Sequence[RoundRecord]) -> dict[str, str]:
    scored, study = newest_scored(records), run.study
    stages = records[0].start.stages if records[0].start else ()
    intervals = any(name.startswith("low/") for each in scored.metrics.values() for name in each)
    audit = newest_audit(run, records)
    return {
        "start": "; ".join(
            f"{stage.kind.replace('_', ' ')}, from public material alone" for stage in stages
        )
        or "Parameters drawn from the seed.",
        "results": good_at(records),
        "by_hospital": "; ".join(_by_hospital(scored)),
        "worst": worse_at(records),
        "fairness": _fairness(run, scored),
        "uncertainty": "95 % intervals over patients, where a hospital publishes them."
        if intervals
        else "",
        "evaluation": _evaluation(study, scored),
        "robustness": "; ".join(
            f"{name.removeprefix('attacked/')} {value:.3f} on images changed to mislead the model"
            for name, value in scored.quality.items()
            if name.startswith("attacked/")
        ),
        "epsilon": privacy_costs(run, records),
        "attacks": _attacks(audit),
        "limits": " ".join(warnings(study, declared_in(run))),
    }


def _evaluation(study: Study, scored: RoundRecord) -> str:
    if not scored.quality:
        return ""
    stated = study.card.evaluation_data
    return f"Each hospital's own evaluation patients, who never train{f': {stated}' if stated else ''}."


def _by_hospital(scored: RoundRecord) -> Iterator[str]:
    name = scored.headline
    for site, values in sorted(scored.metrics.items()):
        if name in values:
            ends = [values.get(f"{end}/{name}") for end in ("low", "high")]
            span = "" if None in ends else f" ({ends[0]:.3f} to {ends[1]:.3f})"
            yield f"{site}: {name} {values[name]:.3f}{span}"


def _fairness(run: Run, scored: RoundRecord) -> str:
    groups = by_group(scored.metrics, run.description.members(scored.round))
    publishing = [each for each in scored.metrics.values() if each]
    found = {**(fairness(scored.metrics) if len(publishing) > 1 else {}), **groups}
    return "; ".join(f"{name.replace('/', ' ')} {value:.3f}" for name, value in sorted(found.items()))


def _attacks(audit: AuditRecord | None) -> str:
    if audit is None:
        return ""
    found = [values["mia_auc"] for values in audit.figures.values() if "mia_auc" in values]
    if not found:
        return f"An audit of round {audit.round} is recorded; no hospital published its figures."
    return (
        f"Membership attacks on the model of round {audit.round} reached an AUC of at most "
        f"{max(found):.2f} (0.5 is guessing)."
    )


def _of_software(run: Run, records: Sequence[RoundRecord]) -> dict[str, str]:
    recorded = records[-1].software
    codes = {member.statement.code_sha256 for member in run.description.everybody.values()}
    licence = run.study.card.licence
    return {
        "software": ", ".join(f"{name} {version}" for name, version in recorded.items()),
        "version": f"Run {run.name}, model of round {records[-1].round}, sha256 "
        f"{records[-1].model_sha256}.",
        "availability": f"Wardround under Apache-2.0, code sha256 {', '.join(sorted(codes))}; "
        f"{f'the model under {licence}; ' if licence else ''}no patient's data are available.",
    }
