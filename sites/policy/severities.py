"""The severity of each check of a hospital's data: `stop`, `skip` the case, or `warn`.

`stop` asks a person of the hospital before it joins any study, whatever is found, and shows the findings
(docs/decisions/0014): from outside, nobody can see what a check found.

| check                                    | looks at            | default of `site.yaml`         |
|------------------------------------------|---------------------|--------------------------------|
| `BREAKING`                                | one case            | the value of `on_broken_case`  |
| orientation, places, spacing,            | one case            | warn                           |
| empty_label, vanished_label,             |                     |                                |
| rounded_label, identifying, burned_in,   |                     |                                |
| unused_files, acquisitions,              |                     |                                |
| constant_channel                         |                     |                                |
| intensity, duplicate, same_head,         | all cases together  | warn                           |
| both_groups, split                       |                     |                                |

A check across cases never skips a case: one patient's training must not depend on another's images.
"""

from collections.abc import Mapping
from typing import Literal, get_args

Breaking = Literal[
    "missing", "outside", "unreadable", "affine", "series", "dimensions", "not_finite", "constant",
    "channel", "channel_place", "colour", "label_shape", "label_affine", "label_values", "unfit",
]  # fmt: skip
CaseCheck = Literal[
    Breaking, "orientation", "places", "spacing", "empty_label", "vanished_label", "rounded_label",
    "identifying", "burned_in", "unused_files", "acquisitions", "constant_channel",
]  # fmt: skip
BREAKING: tuple[Breaking, ...] = get_args(Breaking)
"""Faults with which a case can't train under any policy."""
CohortCheck = Literal["intensity", "duplicate", "same_head", "both_groups", "split"]
Check = CaseCheck | CohortCheck
Severity = Literal["stop", "skip", "warn"]


def severities(
    chosen: Mapping[Check, Severity], on_broken_case: Literal["skip", "stop"]
) -> dict[str, Severity]:
    """Return the severity of each check; `chosen` overrides the defaults.

    Raises:
        ValueError: `chosen` has warn for a check of `BREAKING`, or skip for a check across cases.
    """
    defaults: dict[str, Severity] = dict.fromkeys(get_args(CaseCheck), "warn")
    defaults |= dict.fromkeys(BREAKING, on_broken_case)
    defaults |= dict.fromkeys(get_args(CohortCheck), "warn")
    for check, severity in chosen.items():
        if check in BREAKING and severity == "warn":
            raise ValueError(f"{check}: expected skip or stop, got warn: such a case can't train.")
        if check in get_args(CohortCheck) and severity == "skip":
            raise ValueError(
                f"{check}: expected warn or stop, got skip: one patient's training must not depend on "
                f"another's images."
            )
    defaults.update(chosen.items())
    return defaults
