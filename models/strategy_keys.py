"""The keys of each strategy, as classes for the reference and for editors' schemas.

What counts is the signature of the strategy's own function (`models.strategies`); here are only words.
"""

import inspect
import re
from functools import cache
from typing import Any, Literal

from pydantic import create_model

from models.config import Config
from models.strategies import STRATEGIES

MEANINGS = {
    "mu": "strength of the pull of local steps towards the global model; no unit.",
    "strength": "strength of the pull of personal models towards the global one; no unit.",
    "momentum": "share of the last round's movement that the next one keeps.",
    "lr": "learning rate of the coordinator's step; 1 takes the hospitals' mean change as it is.",
    "layers": "number of last layers that stay at each hospital.",
    "beta1": "share of the mean change that the next round keeps.",
    "beta2": "share of the mean squared change that the next round keeps.",
    "tau": "smallest divisor of a step, in units of the parameters' change.",
    "faulty": "number of hospitals whose changes may be wrong in any way.",
    "chosen": "number of changes that are averaged.",
    "factor": "longest change that counts in full, in medians of the hospitals' lengths.",
}


@cache
def kinds() -> tuple[type[Config], ...]:
    """Return a class for each strategy: its name, and its keys with types, defaults and meanings.

    >>> [kind.model_fields["name"].annotation for kind in kinds()][:2]
    [typing.Literal['fed_avg'], typing.Literal['fed_prox']]
    """
    return tuple(_kind(name) for name in STRATEGIES)


def _kind(name: str) -> type[Config]:
    parameters = inspect.signature(STRATEGIES[name], eval_str=True).parameters
    summary = inspect.cleandoc(STRATEGIES[name].__doc__ or "").split("\n\n")[0].replace("\n", " ")
    summary = re.sub(r" \(`_\w+`\)| \(source: [^)]*\)", "", summary)  # of the code alone
    lines = [f"    {key}: {MEANINGS[key]}" for key in parameters]
    doc = "\n".join([summary, "", "Attributes:", f"    name: {summary}", *lines])
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    fields |= {key: (each.annotation, each.default) for key, each in parameters.items()}
    return create_model(name, __base__=Config, __doc__=doc, **fields)
