"""A hospital's cases as its list has them: the files of each, and what is declared about labels."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from models.settings.tasks import PLAIN
from sites.yaml_files import ConfigError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Ends of the names of pictures."""
NOTHING = "none"
"""Label in a list for a case to which no class applies."""
CLASSES = re.compile(rf"{NOTHING}|\d+(;\s*\d+)*")
"""Pattern of the classes of a case in a list."""


@dataclass(frozen=True)
class CaseFiles:
    """One scan as the hospital lists it.

    Attributes:
        case: its name at the hospital; it may contain a patient's name, so only hospital IT may see it.
        image: a file or, for a DICOM series, a folder, relative to the data; `file.npz#array/index`
            is one image of many. Of several channels, the first.
        label: a file like `image`, or a class for classification; of several masks, the first.
        channels: names of the channels, as `plain_name` writes them, and the file of each; empty where
            the list names none, and the one image is the channel `image`.
        label_map: values of the label that stand for another one in the study.
        label_names: the study's value of each label by the list's own name, where there is a map.
        masks: names of structures, as `plain_name` writes them, and the file of each one's mask; empty
            where one label image has them all.
    """

    case: str
    patient: str
    image: str
    label: str
    session: str = ""
    channels: tuple[tuple[str, str], ...] = ()
    label_map: tuple[tuple[int, int], ...] = ()
    label_names: tuple[tuple[str, int], ...] = ()
    masks: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> dict[str, str]:
        """The file of each channel."""
        return dict(self.channels) or {PLAIN[0]: self.image}

    @property
    def files(self) -> list[str]:
        """The images and the labels, each once."""
        masks = [file for _, file in self.masks]
        return list(dict.fromkeys([self.image, *self.images.values(), self.label, *masks]))


@dataclass(frozen=True)
class Listing:
    """A hospital's cases, and what the hospital declares about their labels.

    Attributes:
        labels: the public names of the labels.
        has_several: each case may have any number of classes.
        has_values: each case has a number.
        structures: where each has a mask of its own, its name as `plain_name` writes it, and the study's
            value by `label_map`; None for the value of the label with this name.
        notes: what is not listed, and why.
    """

    cases: tuple[CaseFiles, ...]
    labels: Mapping[int, str]
    has_several: bool = False
    has_values: bool = False
    structures: Mapping[str, int | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> frozenset[str]:
        """The names of all channels that some case has."""
        return frozenset(name for case in self.cases for name in case.images)

    def mapped(self, channels: Mapping[str, str], label_map: Mapping[int | str, int]) -> "Listing":
        """Return the list in the terms of studies.

        Args:
            channels: by the name of a study's channel, the list's own name for it.
            label_map: by an own value, or an own name, the study's value.

        Raises:
            ConfigError: a name of `label_map` or an own name of a channel is not in the list.
        """
        if not channels and not label_map:
            return self
        channels = {plain_name(name): own for name, own in channels.items()}
        _check_own_names(channels, self.channels)
        if self.structures and label_map:
            return _with_names(self.mapped(channels, {}), label_map)
        values = {self._value_of(own): value for own, value in label_map.items()}
        pairs = tuple(sorted(values.items()))
        names = {plain_name(name): values.get(own, own) for own, name in self.labels.items()}
        named = tuple(sorted(names.items())) if label_map else ()
        cases = tuple(
            replace(case, channels=_with_study_names(case, channels), label_map=pairs, label_names=named)
            for case in self.cases
        )
        kept = {value: name for value, name in self.labels.items() if value not in values}
        return replace(self, cases=cases, labels={**dict.fromkeys(values.values(), ""), **kept})

    def _value_of(self, own: int | str) -> int:
        if isinstance(own, int):
            return own
        for value, name in self.labels.items():
            if plain_name(name) == plain_name(own):
                return value
        known = ", ".join(sorted(self.labels.values()))
        raise ConfigError(f"label_map: expected names of the list's labels ({known}), got {own!r}.")

    @property
    def is_unlabelled(self) -> bool:
        """Whether the list has no labels: it can be surveyed, but not train or evaluate."""
        return not (self.labels or self.structures or any(case.label for case in self.cases))

    @property
    def has_classes(self) -> bool:
        """Whether most labels are classes and no label images; one patient's row does not decide it."""
        if self.has_values:
            return False
        classes = sum(CLASSES.fullmatch(case.label) is not None for case in self.cases)
        return self.has_several or 2 * classes > len(self.cases)


def _with_names(listing: Listing, label_map: Mapping[int | str, int]) -> Listing:
    """Return a list of masks with the study's values of structures by the list's own names."""
    due = {plain_name(str(own)): value for own, value in label_map.items()}
    if strange := sorted(due.keys() - listing.structures.keys()):
        known = ", ".join(sorted(listing.structures))
        raise ConfigError(
            f"label_map: expected names of the list's masks ({known}), got {strange[0]!r}."
        )
    cases = tuple(replace(case, label_names=tuple(sorted(due.items()))) for case in listing.cases)
    return replace(listing, cases=cases, structures={**listing.structures, **due})


def _check_own_names(channels: Mapping[str, str], known: Collection[str]) -> None:
    """Raise ConfigError for an own name that the list lacks while it has channels that nothing maps.

    A hospital may map a channel that it has not: its list then has nothing else.
    """
    used = {PLAIN[0], *channels, *(plain_name(own) for own in channels.values())}
    for name, own in channels.items():
        if plain_name(own) not in known and set(known) - used:
            raise ConfigError(
                f"channels: {name}: expected one of the list's channels ({', '.join(sorted(known))}), "
                f"got {own!r}."
            )


def _with_study_names(
    case: CaseFiles, channels: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:  # fmt: skip
    own = case.images
    named = {name: own[plain_name(one)] for name, one in channels.items() if plain_name(one) in own}
    others = {name: file for name, file in own.items() if name not in channels}
    return tuple({**others, **named}.items())


def plain_name(name: str) -> str:
    """Return the name of a channel or label as studies write it; hospitals use capitals and blanks.

    >>> plain_name("T2 FLAIR")
    't2-flair'
    """
    return re.sub("[^a-z0-9]+", "-", name.casefold()).strip("-")
