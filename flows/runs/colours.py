"""A colour for each hospital of a run, the same in MLflow's charts and in the report."""

from collections.abc import Mapping
from itertools import cycle

from matplotlib import colormaps
from matplotlib.colors import to_hex

from flows.runs.run import RunDescription

TOGETHER = "#1f1f1f"
"""The line of all hospitals together."""
PALETTE = tuple(to_hex(colormaps["tab20"](place)) for place in (*range(0, 20, 2), *range(1, 20, 2)))
"""Ten strong colours and ten pale ones, which matplotlib chose to be distinct; then they repeat."""


def colours(description: RunDescription) -> Mapping[str, str]:
    """Return each hospital's colour `#rrggbb` in order of joining: who joins later changes none."""
    joined = sorted(
        description.everybody, key=lambda site: (description.acceptances(site)[0].since, site)
    )
    return dict(zip(joined, cycle(PALETTE), strict=False))
