"""Commands about models: promote, predict, export-bundle, access."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, ModelArgument, RoundOption, RunArgument, StudyArgument

if TYPE_CHECKING:
    from flows.serving.prediction import Mask
    from sites.study import Study

app = typer.Typer()


@app.command()
def promote(
    run: RunArgument = None,
    round: RoundOption = None,
    wait_s: Annotated[float, typer.Option(min=0, help="Seconds to wait for people.")] = 86400,
) -> None:
    """Release a model: check its evidence, wait for both approvals, make it the champion."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_prefect_and_mlflow
        from sites.yaml_files import ConfigError

        opened = named_run(Home(Path.cwd()), run)
        if opened.study.promotion is None:
            raise ConfigError(
                f"Study {opened.study.name} has no `promotion`, which states the criteria of a release. "
                f"Add one to the study's file, such as promotion: {{metric: dice, mean: 0.7}}, and "
                f"train it."
            )
        with with_prefect_and_mlflow(opened.home):
            from flows import promote as promotion
            from flows.release import evidence, reviews

            record = evidence.record_of(opened, round)
            typer.echo(f"{opened.name}, round {record.round}: checking its evidence ...")
            for line in reviews.how_to_decide(opened, record, wait_s):
                typer.echo(line)
            version = promotion.promote(opened.name, record.round, str(opened.home.folder), wait_s)
            typer.echo(f"Released: version {version} is the champion.")
            typer.echo(f"Use it: wardround predict {opened.study.name}-approved SCAN -o MASK")


@app.command()
def predict(
    model: ModelArgument,
    scans: Annotated[
        list[str],
        typer.Argument(
            help="Scans, or a folder of them: NIfTI, DICOM, PNG or JPEG. CHANNEL=FILE for each channel "
            "of one scan, or a folder of nnU-Net."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The mask on the scan's own grid; of several scans a folder."),
    ] = None,
) -> None:
    """Predict scans: write masks, or print the probability of each class as JSON.

    The mask of a DICOM series is written as DICOM Segmentation, too.
    """
    with cli_errors():
        from flows import served_model
        from flows.runs.paths import Home
        from flows.serving import prediction, scan_files
        from flows.serving.model_files import model_files
        from models.files import sha256_of
        from sites.yaml_files import ConfigError

        with model_files(Home(Path.cwd()), model) as found:
            loaded = served_model.load(found.folder)
            sha256 = sha256_of((found.folder / served_model.WEIGHTS).read_bytes())
        given, failed = scan_files.scans_in(loaded.study.task, scans), []
        dims = loaded.study.task.dims
        places: list[Path | None] = [out] * len(given)
        if out is not None and (len(given) > 1 or scan_files.is_folder(out)):
            places = [*scan_files.masks_of(out, given, dims)]
        for files, place in zip(given, places, strict=True):
            try:
                if place is None:
                    name = {} if len(given) == 1 else {"scan": str(next(iter(files.values())))}
                    typer.echo(json.dumps({**name, **prediction.classes_of(loaded, files)}))
                    continue
                scan_files.check_out(place, next(iter(files.values())), dims)
                mask = prediction.mask_of(loaded, files)
                prediction.write_mask(mask, place)
                typer.echo(f"{place} is written.", err=True)
                _write_segmentation(mask, loaded.study, model, sha256, place)
            except ConfigError as error:  # the others are predicted
                failed.append(str(error))
        if failed:
            raise ConfigError("\n".join(failed))


def _write_segmentation(mask: "Mask", study: "Study", model: str, sha256: str, out: Path) -> None:
    """Write the mask of a DICOM series as DICOM Segmentation, too; say why if it can't be."""
    if not mask.image.series:
        return
    from flows.serving.dicom_mask import NoSegmentation, write_segmentation

    try:
        write_segmentation(mask, study, model, sha256, out)
    except NoSegmentation as error:
        typer.echo(f"{out} is written, and no DICOM Segmentation: {error}", err=True)


@app.command(name="export-bundle")
def export_bundle(
    model: ModelArgument, folder: Annotated[Path, typer.Argument(help="An empty folder.")]
) -> None:
    """Write a model as a MONAI bundle, for `python -m monai.bundle run`."""
    with cli_errors():
        from flows import served_model
        from flows.runs.paths import Home
        from flows.serving import bundle
        from flows.serving.model_files import model_files
        from models.files import sha256_of

        with model_files(Home(Path.cwd()), model) as files:
            weights = (files.folder / served_model.WEIGHTS).read_bytes()
            loaded = served_model.load(files.folder)
            bundle.write(loaded, weights, sha256_of(weights), folder, files.proof)
        typer.echo(f"{folder} is a MONAI bundle; its docs/README.md explains how to run it.")


@app.command(name="verify-bundle")
def verify_bundle(
    folder: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    people: Annotated[Path, typer.Option(help="Your own people.yaml: who may decide.")],
    as_json: AsJsonOption = False,
) -> None:
    """Check that people released a bundle's model, by the signed decisions that it carries."""
    with cli_errors(as_json):
        from flows.decisions.people import people_in
        from flows.serving import bundle

        released = bundle.check(folder, people_in(people))
        if as_json:
            given = {role: verdict.person for role, verdict in sorted(released.given.items())}
            typer.echo(
                json.dumps({"run": released.terms.run, "round": released.terms.round, "by": given})
            )
            return
        persons = " and ".join(f"{v.person} ({role})" for role, v in sorted(released.given.items()))
        typer.echo(f"{released.terms.run}, round {released.terms.round}: released by {persons}.")


@app.command()
def access(
    study: StudyArgument,
    accounts: Annotated[Path, typer.Argument(help="The accounts of each role; see docs/access.md.")],
) -> None:
    """Make a study's accounts and roles in a protected MLflow server, as its administrator."""
    with cli_errors():
        import os

        from flows.runs.paths import Home
        from sites import yaml_files
        from sites.study import load_study

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise yaml_files.ConfigError(
                "MLFLOW_TRACKING_URI: expected the protected server's address in the environment, got "
                "nothing."
            )
        from flows.tracking.access import Accounts, set_up

        passwords = Home(Path.cwd()).state / "access"
        made = set_up(load_study(study).name, yaml_files.load(accounts, Accounts), passwords)
        for name in made:
            typer.echo(f"{name}: the password is in {(passwords / name).relative_to(Path.cwd())}")
        typer.echo("All others had an account already. The roles are those of docs/access.md.")
