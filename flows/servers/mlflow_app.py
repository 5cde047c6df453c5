"""MLflow's server without its assistant and its demo, and with the page on which people decide.

`mlflow server --app-name wardround` and `wardround-accounts` load this. In MLflow 3.17 the assistant can
run commands as the server's user for anybody on its machine; the demo writes an experiment for anybody.
Its first page is of its own tools for language models; here the list of experiments is.
"""

import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.servers import decision_page

if TYPE_CHECKING:
    from fastapi import FastAPI

REFUSED = re.compile(r"/(ajax-)?api/\d+\.\d+/mlflow/(assistant|demo)(/|$)")


class WithoutAssistantAndDemo:
    """An app whose assistant and demo answer 403, to administrators too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it to the app."""
        answer = PlainTextResponse("Not part of this server.", 403) if _is_refused(scope) else self.app
        await answer(scope, receive, send)


def _is_refused(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a request is for the assistant or the demo.

    >>> _is_refused({"path": "//ajax-api/3.0//mlflow/demo/generate"})
    True
    >>> _is_refused({"path": "/api/2.0/mlflow-artifacts/artifacts/1/x/api/3.0/mlflow/demo"})
    False
    """
    return bool(REFUSED.match(re.sub("/+", "/", scope.get("path", ""))))


def create_app() -> "FastAPI":
    """Return the server without accounts; it listens on its own machine only."""
    from mlflow.server import fastapi_app

    app = _without(fastapi_app.app)
    app.router.routes.insert(0, Route("/", _first_page))
    return app


async def _first_page(_: Request) -> Response:
    """Return MLflow's page, which opens on the experiments unless its address names another place."""
    from mlflow.server import app

    page = (Path(app.static_folder or "") / "index.html").read_text()
    return HTMLResponse(page.replace("<script", '<script src="wardround/first.js"></script><script', 1))


def create_app_with_accounts() -> "FastAPI":
    """Return the server with accounts, which its settings describe (`deploy/mlflow-access.ini`)."""
    from mlflow.server import auth

    return _without(auth.create_app())


def _without(app: "FastAPI") -> "FastAPI":
    app.router.routes[:0] = decision_page.routes()  # before MLflow's own, which take every path
    app.add_middleware(WithoutAssistantAndDemo)
    return app
