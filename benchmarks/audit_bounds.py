"""The bound of one run beside that of jax-privacy's `auditing`, on the same guesses.

    pip install 'wardround[audit-check]'
    python benchmarks/audit_bounds.py --json > audit_bounds.json

jax-privacy bounds guesses above a threshold that was fixed beforehand (`Explicit`), as
`privacy.audit.bounds.epsilon_of_one_run` does for as many guesses.

Rows: `{"canaries", "shift", "delta", "ours", "theirs", "true"}`: scores are normal with this shift for
canaries that took part; `true` is the epsilon of that mechanism.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax_privacy.auditing import CanaryScoreAuditor, Explicit  # type: ignore[import-not-found]  # the extra `audit-check`
from rows import print_rows

from privacy.accounting import gaussian_epsilon
from privacy.audit.bounds import Guesses, epsilon_of_one_run

SIGNIFICANCE = 0.05
CASES = [
    (2000, 2.0, 1e-5),
    (2000, 1.0, 1e-6),
    (20_000, 2.0, 1e-7),
    (20_000, 0.5, 1e-7),
    (10_000, 3.0, 1e-5),
]


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each case."""
    rng = np.random.default_rng(0)
    for canaries, shift, delta in CASES:
        inside, outside = rng.normal(shift, 1, canaries // 2), rng.normal(0, 1, canaries // 2)
        threshold = shift
        made = int((inside >= threshold).sum() + (outside >= threshold).sum())
        found = Guesses(canaries, made, int((inside >= threshold).sum()))
        theirs = CanaryScoreAuditor(inside, outside).epsilon_one_run(
            SIGNIFICANCE, delta, threshold_strategy=Explicit(threshold)
        )
        yield {
            "canaries": canaries,
            "shift": shift,
            "delta": delta,
            "ours": round(epsilon_of_one_run(found, delta, confidence=1 - SIGNIFICANCE), 5),
            "theirs": round(float(theirs), 5),
            "true": round(gaussian_epsilon(shift, delta), 3),
        }


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    print_rows(rows(), as_json=parser.parse_args().json)


if __name__ == "__main__":
    main()
