"""The page on which people decide about a model in their browser, and the place that takes verdicts.

The page itself holds no data: it reads the run's tags and report from MLflow under the reader's account,
and signs in the browser. A verdict counts by its signature alone (`wardround review enter`), so whoever
can reach this place can record nothing in another person's name.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from models.config import Config
from sites.exchange.phases import RunName

PAGES = Path(__file__).parent / "pages"
PAGE = "wardround/decide"
HOME = "WARDROUND_COORDINATOR_FOLDER"
"""The environment variable with the coordinator's folder; without it verdicts are not taken here."""
LARGEST = 64 * 1024
TIMEOUT_S = 300
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Sent(Config):
    """What the page sends: a run, and a verdict signed by a person."""

    run: RunName
    signed: str = Field(max_length=LARGEST, pattern=r"^\{")


def routes() -> list[BaseRoute]:
    """Return the page's routes, of which the last takes verdicts."""
    one_at_a_time = asyncio.Lock()

    async def verdicts(request: Request) -> Response:
        async with one_at_a_time:
            return await _take(request)

    files = ("decide.html", "decide.css", "decide.js", "first.js")
    return [
        Route(f"/{PAGE}", _sent(files[0])),
        *(Route(f"/wardround/{name}", _sent(name)) for name in files[1:]),
        Route("/wardround/verdicts", verdicts, methods=["POST"]),
    ]


def _sent(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(PAGES / name, headers=HEADERS)

    return send


async def _take(request: Request) -> Response:
    """Have a verdict recorded by the command line, in a process of its own; answer what it prints."""
    home = os.environ.get(HOME)
    if not home:
        return PlainTextResponse("Verdicts are not taken here.", 404)
    if int(request.headers.get("Content-Length", LARGEST + 1)) > LARGEST:
        return _answer(400, "Expected a signed verdict, got a longer text.")
    try:
        sent = Sent.model_validate(json.loads(await request.body()))
    except (ValueError, ValidationError):
        return _answer(400, "Expected a run and a signed verdict.")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flows.cli", "review", "enter", "--", sent.signed, sent.run),
        cwd=home,
        env={**os.environ, "MLFLOW_TRACKING_URI": str(request.base_url).rstrip("/")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        told, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        process.kill()
        return _answer(504, "It took too long; `wardround review show` says whether it is recorded.")
    return _answer(200 if process.returncode == 0 else 400, told.decode(errors="replace"))


def _answer(status: int, text: str) -> Response:
    return JSONResponse({"is_recorded": status == 200, "text": text.strip()}, status)
