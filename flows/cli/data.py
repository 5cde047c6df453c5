"""The `wardround data` commands: hospitals made from synthetic or public data."""

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from flows.cli.errors import cli_errors

if TYPE_CHECKING:
    from sites.datasets.downloads import Source

app = typer.Typer(help="Make hospitals from synthetic or public data.", no_args_is_help=True)


FromOption = Annotated[
    Path | None, typer.Option("--from", help="The set: its unpacked folder, or its file.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch it from its public address.")]
DownloadsOption = Annotated[Path, typer.Option(help="The folder for downloads.")]
MirrorOption = Annotated[
    str | None, typer.Option(help="Fetch it from this address instead; its checksum must be the same.")
]
OutOption = Annotated[Path, typer.Option(help="The folder for the hospitals.")]
HospitalsOption = Annotated[int, typer.Option(min=1)]
SeedOption = Annotated[int, typer.Option(min=0)]


@app.command()
def phantoms(
    out: OutOption = Path("wards"),
    seed: SeedOption = 0,
) -> None:
    """Make four made-up hospitals."""
    with cli_errors():
        from sites.datasets.phantoms import make_wards

        before = {path.parent for path in out.glob("*/site.yaml")}
        _show(out, make_wards(out, seed), before)


def _show(out: Path, wards: Iterable[Path], before: Container[Path] = ()) -> None:
    """Make hospitals known to each other, and name their folders, and others that are beside them."""
    from sites.setup.wards import introduce

    made = list(wards)
    others = {path.parent for path in out.glob("*/site.yaml")} - set(made)
    if others:
        named = ", ".join(sorted(path.name for path in others))
        typer.echo(
            f"warning: {out} holds other hospitals too ({named}). A study with --sites {out} asks them "
            f"as well; take another --out to keep them apart.",
            err=True,
        )
    introduce(made)
    for ward in made:
        typer.echo(
            f"{ward}: was there, and stays with all that it has spent" if ward in before else ward
        )


DOWNLOADS = Path(".wardround/downloads")


def _decathlon(name: str) -> Callable[..., None]:
    def make(
        source: FromOption = None,
        download: DownloadOption = False,
        mirror: MirrorOption = None,
        downloads: DownloadsOption = DOWNLOADS,
        out: OutOption = Path("wards"),
        hospitals: HospitalsOption = 4,
        channel: Annotated[
            int | None, typer.Option(min=0, help="The channel, where images have several.")
        ] = None,
        skew: Annotated[
            Literal["patients", "intensity", "size", "labels"],
            typer.Option(help="The property in which the hospitals differ."),
        ] = "patients",
        seed: SeedOption = 0,
    ) -> None:
        with cli_errors():
            from sites.datasets.decathlon import make_hospitals
            from sites.datasets.downloads import unpacked
            from sites.datasets.public_sets import DECATHLON

            folder = source or unpacked(_fetched(DECATHLON[name], download, mirror, downloads))
            _show(out, make_hospitals(folder, out, hospitals, seed, channel, skew))

    make.__doc__ = f"Divide the Decathlon's {name} scans among hospitals, by patient."
    return make


def _pictures(name: str) -> Callable[..., None]:
    def make(
        source: FromOption = None,
        download: DownloadOption = False,
        mirror: MirrorOption = None,
        downloads: DownloadsOption = DOWNLOADS,
        out: OutOption = Path("wards"),
        hospitals: HospitalsOption = 4,
        skew: Annotated[
            float,
            typer.Option(
                min=0.01, help="Dirichlet concentration; hospitals differ more if it is small."
            ),
        ] = 0.5,
        seed: SeedOption = 0,
    ) -> None:
        with cli_errors():
            from sites.datasets.medmnist import make_hospitals
            from sites.datasets.public_sets import PICTURES
            from sites.yaml_files import ConfigError

            pictures = PICTURES[name]
            if source and not source.is_file():
                raise ConfigError(f"--from {source}: expected the file {pictures.source.name}.")
            file = source or _fetched(pictures.source, download, mirror, downloads)
            _show(out, make_hospitals(file, out, hospitals, pictures, skew=skew, seed=seed))

    make.__doc__ = f"Divide MedMNIST's {name} set among hospitals that differ in their labels."
    return make


for _name in ("braintumour", "heart", "liver", "hippocampus", "prostate", "lung", "pancreas",
              "hepaticvessel", "spleen", "colon"):  # fmt: skip
    app.command(_name)(_decathlon(_name))
for _name in ("pneumonia", "breast", "oct", "chest", "derma", "blood", "retina", "path", "nodule3d",
              "adrenal3d", "fracture3d"):  # fmt: skip
    app.command(_name)(_pictures(_name))


def _fetched(source: "Source", download: bool, mirror: str | None, downloads: Path) -> Path:
    """Return the file of a public set, with a bar for the download."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from sites.datasets.downloads import fetch
    from sites.yaml_files import ConfigError

    if not download:
        raise ConfigError("Expected --from with the set's path, or --download to fetch it.")
    if mirror:
        source = replace(source, url=f"{mirror.rstrip('/')}/{source.name}")
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(source.name, total=None)
        return fetch(source, downloads, lambda have, of: bars.update(bar, completed=have, total=of))
