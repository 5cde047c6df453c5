"""MLflow's server without its assistant and its demo, and with the page on which people decide.

`mlflow server --app-name wardround` and `wardround-accounts` load this. In MLflow 3.17 the assistant can
run commands as the server's user for anybody on its machine; the demo writes an experiment for anybody.
Its first page is of its own tools for language models; here the list of experiments is.
"""

import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.servers import decision_page

if TYPE_CHECKING:
    from fastapi import FastAPI

ADDED = b'<link rel="stylesheet" href="wardround/first.css"><script src="wardround/first.js"></script>'
"""What the page of MLflow also loads, before its own scripts."""
REFUSED = re.compile(r"/(ajax-)?api/\d+\.\d+/mlflow/(assistant|demo)(/|$)")


class WithoutAssistantAndDemo:
    """An app whose assistant and demo answer 403, to administrators too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it to the app."""
        answer = PlainTextResponse("Not part of this server.", 403) if _is_refused(scope) else self.app
        await answer(scope, receive, send)


class OwnFirstPage:
    """An app whose page, MLflow's own, opens on the experiments and shows no assistant."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the page for `/` gets `first.js` and `first.css`."""
        if (scope["type"], scope.get("path")) != ("http", "/"):
            await self.app(scope, receive, send)
            return
        begun: Message = {}
        body = b""

        async def change(message: Message) -> None:
            nonlocal begun, body
            if message["type"] == "http.response.start":
                begun = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            if begun["status"] == 200:
                body = body.replace(b"<script", ADDED + b"<script", 1)
                headers = MutableHeaders(scope=begun)
                headers["Content-Length"] = str(len(body))
                del headers["ETag"], headers["Last-Modified"]  # they are those of MLflow's own
            await send(begun)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, change)


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

    return _wardrounds(fastapi_app.app)


def create_app_with_accounts() -> "FastAPI":
    """Return the server with accounts, which its settings describe (`deploy/mlflow-access.ini`)."""
    from mlflow.server import auth

    return _wardrounds(auth.create_app())


def _wardrounds(app: "FastAPI") -> "FastAPI":
    app.router.routes[:0] = decision_page.routes()  # before MLflow's own, which take every path
    app.add_middleware(OwnFirstPage)
    app.add_middleware(WithoutAssistantAndDemo)
    return app
