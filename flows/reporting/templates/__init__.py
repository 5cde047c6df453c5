"""Pages for people: HTML without scripts that loads nothing, to be attached, archived and printed."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.runs.dates import minute

FOLDER = Path(__file__).parent


def rendered(template: str, unknown: str, **values: object) -> bytes:
    """Return a page as the bytes of an HTML file.

    Args:
        template: the name of a file in this folder.
        unknown: what stands where nobody has recorded anything.
        values: the template's own; one that it needs and lacks is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "figure": lambda value: unknown if value is None else f"{value:.3f}",
        "day": minute,
        "stated": lambda text: text or unknown,
    }
    return environment.get_template(template).render(**values).encode()
