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

from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from models.config import Config
from models.errors import FixYourInput
from sites.exchange.phases import RunName

PAGES = Path(__file__).parent / "pages"
PAGE = "wardround/decide"
HOME = "WARDROUND_COORDINATOR_FOLDER"
"""The environment variable with the coordinator's folder; without it verdicts are not taken here."""
LARGEST = 64 * 1024
READ_S, TIMEOUT_S = 10, 300
"""Seconds for a verdict to arrive, and to be recorded."""
MOST_WAITING = 8
OWN = ("MLFLOW_TRACKING_", "_MLFLOW_")
"""What the names of the server's own settings begin with, which no other process needs."""
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
    signed: str = Field(max_length=LARGEST, pattern=r"^\{[^\x00]*$")


class NotTaken(Exception):
    """A request that is no verdict: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def routes() -> list[BaseRoute]:
    """Return the page's routes, of which the last takes verdicts."""
    one_at_a_time, waiting = asyncio.Lock(), asyncio.Semaphore(MOST_WAITING)

    async def verdicts(request: Request) -> Response:
        home = os.environ.get(HOME)
        if not home:
            return PlainTextResponse("Verdicts are not taken here.", 404)
        try:
            _check_own(request)
            sent = await asyncio.wait_for(_sent_in(request), READ_S)
            if waiting.locked():
                raise NotTaken(503, "Others are being recorded; try again in a minute.")
        except TimeoutError:
            return _answer(408, "no", "Expected a signed verdict within some seconds.")
        except ClientDisconnect:
            return _answer(400, "no", "")
        except NotTaken as error:
            return _answer(error.status, "no", str(error))
        async with waiting, one_at_a_time:
            return await _record(sent, Path(home), request.scope["server"])

    files = ("decide.html", "decide.css", "decide.js", "first.js", "first.css")
    return [
        Route(f"/{PAGE}", _file(files[0])),
        *(Route(f"/wardround/{name}", _file(name)) for name in files[1:]),
        Route("/wardround/verdicts", verdicts, methods=["POST"]),
    ]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(PAGES / name, headers=HEADERS)

    return send


def _check_own(request: Request) -> None:
    """Raise `NotTaken` for what other web sites make a browser send."""
    origin = request.headers.get("Origin", "")
    if origin and origin.partition("://")[2] != request.headers.get("Host", ""):
        raise NotTaken(403, "Expected a verdict from this server's own page.")
    if request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
        raise NotTaken(415, "Expected JSON.")


async def _sent_in(request: Request) -> Sent:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST:
            raise NotTaken(413, "Expected a signed verdict, got a longer text.")
    try:
        return Sent.model_validate(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise NotTaken(400, "Expected a run and a signed verdict.") from error


async def _record(sent: Sent, home: Path, server: tuple[str, int]) -> Response:
    """Have a verdict recorded by the command line, in a process of its own; answer what it prints.

    It records first, and publishes then: so whether it is recorded is read from the chain.
    """
    known = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flows.cli", "review", "enter", "--", sent.signed, sent.run),
        cwd=home,
        env={**known, "MLFLOW_TRACKING_URI": f"http://{server[0]}:{server[1]}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        told, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        process.kill()
        told = b"It took too long to publish it."
    text = told.decode(errors="replace")
    if process.returncode == 0:
        return _answer(200, "yes", text)
    if await asyncio.to_thread(_is_recorded, sent, home):
        return _answer(200, "yes, and not published everywhere yet", text)
    return _answer(400, "no", text)


def _is_recorded(sent: Sent, home: Path) -> bool:
    from flows.decisions import chain  # MLflow's server needs none of it otherwise
    from flows.runs.paths import Home
    from flows.runs.record_files import BrokenRun
    from flows.runs.run import named_run

    try:
        links = chain.decisions(named_run(Home(home), sent.run))
    except (BrokenRun, FixYourInput, OSError, ValueError):
        return False
    return sent.signed in {link.signed for link in links}


def _answer(status: int, recorded: str, text: str) -> Response:
    return JSONResponse({"recorded": recorded, "text": text.strip()}, status)
