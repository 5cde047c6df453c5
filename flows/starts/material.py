"""Whether the public material that a study's start and validation name is there, without reading it."""

from collections.abc import Iterator
from pathlib import Path

from sites.study import Study


def missing_material(study: Study, public: Path) -> list[str]:
    """Return a sentence for each folder or file under `public/` that a study names and lacks.

    >>> from pathlib import Path
    >>> from sites.study import load_study
    >>> missing_material(load_study(Path("studies/hippocampus.yaml")), Path("public"))
    []
    """
    return [
        f"{key}: expected {public / name}, and it is not there. Public material lies in the folder "
        f"from which the study is run."
        for key, name in _named(study)
        if not (public / name).exists()
    ]


def _named(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what names public material, and the names; a file may have one stage without a list."""
    for number, stage in enumerate(study.start, start=1):
        for key in ("folder", "file"):
            if name := getattr(stage, key, None):
                yield f"`{key}` of stage {number} of start ({stage.kind})", name
    if study.validation:
        yield "validation.folder", study.validation.folder
