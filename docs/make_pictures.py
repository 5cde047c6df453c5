"""The pictures of README and pages, all of one finished demo.

    wardround demo                           # in a folder of its own
    python docs/make_pictures.py FOLDER      # needs Debian's chromium

MLflow draws slowly, so each page gets some seconds. Pillow takes the colours down to 256.
"""

import argparse
import io
import re
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from flows.reporting.live_table import Step, live_table
from flows.reporting.progress import Live
from flows.runs.paths import Home
from flows.runs.run import Run, named_run
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.tracking.views import links

HERE = Path(__file__).parent
PICTURES = {
    "mlflow": ("all hospitals", 1500, 1830),
    "report": ("report", 1000, 1136),
    "decide": ("decide", 1000, 1380),
    "references": ("pictures", 1440, 1120),
    "version": ("versions", 1500, 945),
}
"""By the picture's name: the end of the link's title, width and height of the page."""
WIDTH = 1000
SECONDS = 12


ROUNDS = 3
"""Rounds that are recorded where the picture of the terminal is drawn."""
STEPS = {"east": 2, "north": 1, "south": 3}
"""Steps that hospitals have taken in the next one."""


def terminal(run: Run, path: Path) -> None:
    """Draw what a terminal shows of a run whose first rounds are recorded."""
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    shown, records = Live(console), run.records()[: ROUNDS + 1]
    for record in records:
        shown.round(run, record)
    of = run.study.training.steps
    steps = {site: Step("train", min(step, of), of) for site, step in STEPS.items()}
    console.print(live_table(run, sorted(run.description.roster), records, steps, console.width))
    drawn = console.export_svg(title="wardround demo")
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # nothing is loaded from outside
    path.write_text(drawn.replace("Fira Code, monospace", "monospace") + "\n")


def main() -> None:
    """Open each page of a finished demo and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the demo's folder")
    parser.add_argument("--out", type=Path, default=HERE / "images")
    asked = parser.parse_args()
    home = Home(asked.folder.resolve())
    terminal(named_run(home, None), asked.out / "terminal.svg")
    with running(mlflow_server(home)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        known = links(url)
        for name, (title, width, height) in PICTURES.items():
            (link,) = (address for words, address in known if words.endswith(title))
            if name == "version":
                link = link.replace("?", "/versions/1?")
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(link)
            page.wait_for_timeout(SECONDS * 1000)
            _write(page.screenshot(), asked.out / f"{name}.png")
            page.close()
        browser.close()


def _write(data: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    small = picture.resize(
        (WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS
    )
    small.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
