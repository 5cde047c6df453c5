"""The pictures of README and pages, all of one finished demo.

    wardround demo                           # in a folder of its own
    python docs/make_pictures.py FOLDER      # needs Debian's chromium

MLflow draws slowly, so each page gets some seconds. Pillow takes the colours down to 256.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from flows.runs.paths import Home
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


def main() -> None:
    """Open each page of a finished demo and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the demo's folder")
    parser.add_argument("--out", type=Path, default=HERE / "images")
    asked = parser.parse_args()
    with running(mlflow_server(Home(asked.folder.resolve()))) as url, sync_playwright() as playwright:
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
