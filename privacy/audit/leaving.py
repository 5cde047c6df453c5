"""Every field that leaves a hospital: what it can reveal, what guards it, and the test of the guard.

`docs/threat-model.md` has this table. A test compares it with the statement types: a new field without a
row fails the checks. Names of fields that several statements share stand once, under `every statement`.
"""

from collections.abc import Iterator
from typing import NamedTuple, get_args

from privacy.statements import Statement, _Statement

ALL = "every statement"
BESIDE = "beside statements"


class Leaving(NamedTuple):
    """A field that leaves: what it can reveal, what guards it, the name of the test."""

    reveals: str
    guard: str
    test: str


_ORDERED = Leaving(
    "nothing: the order named it",
    "repeated from the order",
    "test_nothing_that_leaves_names_a_patient_or_a_true_count",
)
_DECLARED = "test_nothing_that_leaves_names_a_patient_or_a_true_count"
_MASKS = "test_a_hospital_that_is_called_a_dropout_stays_masked_by_its_own_mask"
_SECRETS = "test_nothing_of_an_attempts_secrets_leaves_and_they_are_deleted_with_its_end"

LEAVING: dict[tuple[str, str], Leaving] = {
    **{(ALL, name): _ORDERED for name in ("study", "study_sha256", "run", "round", "purpose", "site")},
    (ALL, "ledger_head"): Leaving(
        "whether the ledger has changed since; its entries are not to be found from a hash with a keyed "
        "part",
        "the hash covers keyed hashes of patients",
        "test_nothing_that_leaves_names_a_patient_or_a_true_count",
    ),
    (ALL, "event"): Leaving(
        "noise, rate and steps of the mechanism",
        "computed from the study and the declared patients before any scan is read",
        "test_the_manifest_names_the_tensors_of_the_file_the_declared_number_and_the_charged_event",
    ),
    (ALL, "charges"): Leaving(
        "how many acts of this kind the run has paid for",
        "acts are the coordinator's own orders",
        "test_rerunning_a_round_charges_once",
    ),
    ("acceptance", "steps"): Leaving(
        "the policy's limit on steps", "the hospital's own setting",
        "test_a_hospital_with_fewer_steps_pays_for_them_alone",
    ),
    ("acceptance", "declared_training"): Leaving(
        "a rounded number that the hospital made public", "the declared number alone", _DECLARED
    ),
    ("acceptance", "declared_patients"): Leaving("the same", "the declared number alone", _DECLARED),
    ("acceptance", "budget"): Leaving(
        "the hospital's limit for all studies", "the hospital's own setting",
        "test_joining_promises_no_more_than_the_budget_holds",
    ),
    ("acceptance", "version"): Leaving(
        "the installed software", "no patient's data",
        "test_nothing_that_leaves_names_a_patient_or_a_true_count",
    ),
    ("acceptance", "code_sha256"): Leaving(
        "the installed software", "no patient's data",
        "test_nothing_that_leaves_names_a_patient_or_a_true_count",
    ),
    ("acceptance", "cross_site"): Leaving(
        "a setting", "the hospital's own setting",
        "test_nothing_that_leaves_names_a_patient_or_a_true_count",
    ),
    ("acceptance", "group"): Leaving(
        "the kind of scans, as the hospital calls it", "the hospital's own words",
        "test_nothing_that_leaves_names_a_patient_or_a_true_count",
    ),
    ("acceptance", "lacks"): Leaving(
        "channels that no listed case has", "from the list, never from a scan",
        "test_no_answer_to_check_or_join_depends_on_what_a_scan_shows",
    ),
    ("refusal", "reason"): Leaving(
        "why the hospital takes no part: a limit, the study, the list; after training only that it "
        "diverged",
        "one printable line from a fixed set; no count, no name, no class of error",
        "test_what_goes_wrong_is_in_the_hospitals_own_log_and_no_class_of_error_leaves",
    ),
    ("release", "content"): Leaving(
        "nothing: the study says it", "repeated from the study",
        "test_where_predictions_leave_no_weight_does",
    ),
    ("release", "base_sha256"): Leaving(
        "nothing: the coordinator's model", "repeated", "test_a_release_that_does_not_fit_is_rejected"
    ),
    ("release", "chain_head"): Leaving(
        "nothing: the coordinator's chain", "repeated", "test_a_release_that_does_not_fit_is_rejected"
    ),
    ("release", "payload_sha256"): Leaving(
        "the released tensors, which cost the event",
        "clipping and noise on a public grid, charged before training",
        "test_every_released_number_is_on_one_public_grid_whatever_the_sum_is",
    ),
    ("release", "payload_bytes"): Leaving(
        "nothing: shapes and types are the study's", "tensors of fixed shapes, stored uncompressed",
        "test_the_manifest_names_the_tensors_of_the_file_the_declared_number_and_the_charged_event",
    ),
    ("release", "tensors"): Leaving(
        "nothing: names and shapes are the study's", "fixed by the study",
        "test_a_manifest_that_lists_other_tensors_is_rejected",
    ),
    ("release", "declared_training"): Leaving(
        "a rounded number that the hospital made public", "the declared number alone",
        "test_the_sum_is_divided_by_the_declared_number_and_not_the_true_one",
    ),
    ("release", "epsilon"): Leaving(
        "what the run has cost, the same for every patient who may take part",
        "computed from charges, which no scan changes",
        "test_the_classes_cost_what_the_patients_one_by_one_cost_and_never_more_than_the_budget",
    ),
    ("release", "delta"): Leaving(
        "nothing: the study's", "repeated", "test_a_manifest_with_impossible_figures_is_no_statement"
    ),
    ("release", "epsilon_reported"): Leaving(
        "the same by other accountants", "computed from charges",
        "test_an_accountant_that_can_report_no_epsilon_is_found_before_a_charge",
    ),
    ("release", "plain_releases"): Leaving(
        "how often the same patients trained without privacy", "a count of the hospital's own acts",
        "test_a_release_without_privacy_needs_a_ledger_that_allows_it",
    ),
    ("release", "noise"): Leaving(
        "whether the noise is from the system", "a fact of the process",
        "test_the_manifest_names_the_tensors_of_the_file_the_declared_number_and_the_charged_event",
    ),
    ("release", "masked"): Leaving(
        "members and attempt of a secure sum", "public terms, signed by each member", _MASKS
    ),
    ("sum_keys", "attempt"): Leaving("nothing: the order named it", "repeated", _SECRETS),
    ("sum_keys", "weight"): Leaving("a declared number", "the declared number alone", _DECLARED),
    ("sum_keys", "pair"): Leaving("a public key", "fresh for each attempt", _SECRETS),
    ("sum_keys", "box"): Leaving("a public key", "fresh for each attempt", _SECRETS),
    ("sum_shares", "attempt"): Leaving("nothing: the order named it", "repeated", _SECRETS),
    ("sum_shares", "members"): Leaving(
        "who takes part", "the hospitals' own signed keys",
        "test_a_hospital_that_was_shown_another_roster_is_left_out_uncharged",
    ),
    ("sum_shares", "boxes"): Leaving(
        "shares of secrets, each sealed for one hospital",
        "each is encrypted for one hospital; a threshold of shares opens a secret",
        "test_shares_for_another_roster_are_refused_by_the_other_hospitals_too",
    ),
    ("sum_shares", "commitment"): Leaving("a hash of a random mask", "256 random bits", _SECRETS),
    ("sum_survivors", "attempt"): Leaving("nothing: the order named it", "repeated", _SECRETS),
    ("sum_survivors", "survivors"): Leaving(
        "whose releases are summed", "public", "test_a_list_of_survivors_that_is_too_short_is_not_signed"
    ),
    ("sum_opening", "attempt"): Leaving("nothing: the order named it", "repeated", _SECRETS),
    ("sum_opening", "own"): Leaving(
        "shares of masks of hospitals whose sums are in",
        "never for a hospital whose pair shares were given",
        "test_a_coordinator_that_calls_a_hospital_a_dropout_gets_no_second_list_and_never_both_shares",
    ),
    ("sum_opening", "pair"): Leaving(
        "shares of pair secrets of hospitals that dropped out", "the same; their own mask stays", _MASKS
    ),
    ("scores", "model_sha256"): Leaving(
        "nothing: the coordinator's model", "repeated", "test_what_is_no_known_statement_is_rejected"
    ),
    ("scores", "chain_head"): Leaving(
        "nothing: the coordinator's chain", "repeated", "test_what_is_no_known_statement_is_rejected"
    ),
    ("scores", "metrics_policy"): Leaving(
        "a setting, and whether enough evaluation patients are listed",
        "depends on the list, never on a scan",
        "test_whether_metrics_are_withheld_depends_on_who_is_listed_and_a_broken_scan_is_a_miss",
    ),
    ("scores", "metrics"): Leaving(
        "quality at evaluation patients, who never train: rounded where exact, else noised and charged",
        "the policy's `metrics`; exact metrics promise evaluation patients nothing",
        "test_noised_metrics_are_the_exact_sum_with_noise_of_the_stated_size",
    ),
    ("scores", "masked"): Leaving("members of a secure sum", "public terms", _MASKS),
    ("scores", "hidden"): Leaving(
        "nothing but in the sum over hospitals", "masked, noised, charged",
        "test_metrics_are_those_of_all_patients_together_with_the_shares_of_noise",
    ),
    ("comparison", "models"): Leaving(
        "nothing: models that hospitals released", "repeated",
        "test_what_is_no_known_statement_is_rejected",
    ),
    ("comparison", "metrics"): Leaving(
        "quality of others' models at evaluation patients, rounded",
        "the policies' `cross_site` and `metrics`",
        "test_rounded_shares_fit_many_numbers_of_patients",
    ),
    ("audit", "model_sha256"): Leaving(
        "nothing: the coordinator's model", "repeated", "test_what_is_no_known_statement_is_rejected"
    ),
    ("audit", "figures"): Leaving(
        "how well the model tells who trained it; whose scans are told apart, of evaluation patients",
        "noise on a public grid, charged to the ledger; the second is rounded like exact metrics",
        "test_an_audit_leaves_one_noised_number_that_is_charged_and_keeps_the_report_here",
    ),
    ("survey", "declared_patients"): Leaving(
        "a declared number", "the declared number alone", _DECLARED
    ),
    ("survey", "statistics_policy"): Leaving(
        "a setting", "the hospital's own setting",
        "test_noised_surveys_end_at_the_number_that_the_policy_allows_a_study_and_a_week",
    ),
    ("survey", "histograms"): Leaving(
        "how scans are distributed: bins of few patients suppressed, or noised and charged",
        "the policy's `statistics`; suppression is no differential privacy",
        "test_a_cell_of_few_patients_is_not_told_nor_can_it_be_found_from_the_total",
    ),
    ("survey", "masked"): Leaving("members of a secure sum", "public terms", _MASKS),
    ("survey", "hidden"): Leaving(
        "nothing but in the sum over hospitals", "masked, noised, charged",
        "test_a_survey_is_that_of_all_patients_together",
    ),
    (BESIDE, "time of an answer"): Leaving(
        "how long training took, which depends on the number of scans and their size",
        "not guarded: a known gap; hours and deadlines are public",
        "test_what_goes_wrong_is_in_the_hospitals_own_log_and_no_class_of_error_leaves",
    ),
    (BESIDE, "progress of a training"): Leaving(
        "steps done, of a number that the study states", "no loss, no lot, no count of patients",
        "test_nothing_that_leaves_names_a_patient_or_a_true_count",
    ),
    (BESIDE, "class of an error"): Leaving(
        "one of a few conditions that no scan decides; `Fault` for all others",
        "details stay in the hospital's log",
        "test_what_goes_wrong_is_in_the_hospitals_own_log_and_no_class_of_error_leaves",
    ),
    (BESIDE, "number and names of files"): Leaving(
        "the acts, which the orders named", "one file for each act, at a place that the order fixes",
        "test_a_place_has_the_name_that_is_documented",
    ),
}  # fmt: skip
"""By the kind of statement and the name of the field."""


def fields_that_leave() -> Iterator[tuple[str, str]]:
    """Yield each field of each statement type, those that all share once."""
    yield from ((ALL, name) for name in _Statement.model_fields)
    for statement in get_args(Statement):
        (kind,) = get_args(statement.model_fields["kind"].annotation)
        shared = {*_Statement.model_fields, "kind"}
        yield from ((kind, name) for name in statement.model_fields if name not in shared)


def table() -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| statement | field | can reveal | guard | test |", "|---|---|---|---|---|"]
    lines += [
        f"| {kind} | {name} | {row.reveals} | {row.guard} | `{row.test}` |"
        for (kind, name), row in LEAVING.items()
    ]
    return "\n".join(lines) + "\n"
