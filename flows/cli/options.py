"""Arguments and options that several commands share."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

SitesOption = Annotated[Path, typer.Option(help="The folder with the hospitals.")]
SiteArgument = Annotated[Path, typer.Argument(help="The hospital's folder.")]
StudyArgument = Annotated[Path, typer.Argument(help="The study's YAML file.")]
StudyNameArgument = Annotated[str, typer.Argument(help="The study's name.")]
RunArgument = Annotated[
    str | None, typer.Argument(help="The run's name; by default the latest.", show_default=False)
]
RoundOption = Annotated[int | None, typer.Option(help="The round; by default the latest.")]
ModelArgument = Annotated[
    str, typer.Argument(help="<study>-approved, <study>-candidates, either with /VERSION, or a run.")
]
TestNoiseOption = Annotated[
    int | None,
    typer.Option(help="Repeatable noise from this seed; made-up hospitals only.", hidden=True),
]
AsJsonOption = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
SinceOption = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only from this day on, in UTC.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
