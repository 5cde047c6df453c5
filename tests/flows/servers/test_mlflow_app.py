"""What our MLflow servers leave out of MLflow; those with accounts are in `test_access`."""

from pathlib import Path

import httpx

from flows.runs.paths import Home
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running


def test_nobody_on_the_machine_can_use_mlflows_assistant_or_make_its_demo(tmp_path: Path) -> None:
    with running(mlflow_server(Home(tmp_path))) as url, httpx.Client() as client:
        for method, path in (
            ("PUT", "assistant/config"), ("POST", "assistant/message"), ("POST", "demo/generate"),
        ):  # fmt: skip
            for place in ("/ajax-api/3.0/mlflow/", "//ajax-api//3.0/mlflow/"):
                assert client.request(method, url + place + path, json={}).status_code == 403
        found = client.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 9})
        assert [each["name"] for each in found.json()["experiments"]] == ["Default"]


def test_the_first_page_is_mlflows_with_our_script_and_style_and_is_never_an_older_one(
    tmp_path: Path,
) -> None:
    with running(mlflow_server(Home(tmp_path))) as url:
        page = httpx.get(url)
        assert page.text.index("wardround/first.css") < page.text.index("static-files/static/js/main")
        assert page.text.index("wardround/first.js") < page.text.index("static-files/static/js/main")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "ETag" not in page.headers
        assert httpx.get(f"{url}/wardround/first.css").headers["Content-Type"].startswith("text/css")
