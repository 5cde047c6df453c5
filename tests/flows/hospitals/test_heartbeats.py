"""Silent workers, as a real Prefect server knows them."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from listener import came

from flows.runs.paths import Home
from flows.servers.environment import prefect_server, prefect_settings
from flows.servers.loopback import running

WATCHING = """
import time
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from flows.hospitals import heartbeats
from flows.hospitals.heartbeats import Watch, quiet_seconds
from sites.orders import Order
from sites.study import load_study
from pathlib import Path

heartbeats.LOOK_S, heartbeats.SILENT_S = 0.0, 1.0
order = Order(phase="contribute", study=load_study(Path("small.yaml")), site="north", run="small-1",
              round=3, attempt=1, exchange="x", coordinator="y")
watch = Watch(order)
assert quiet_seconds("north") is None
watch.look()
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="north", type="process"))
    client.request("POST", "/work_pools/{name}/workers/heartbeat", path_params={"name": "north"},
                   json={"name": "a worker", "heartbeat_interval_seconds": 30})
assert quiet_seconds("north") < 1
watch.look()
print("heard", flush=True)
time.sleep(1.2)
for _ in range(3):
    watch.look()
"""


@pytest.mark.slow
def test_a_person_is_called_once_when_the_worker_that_is_waited_for_falls_silent(
    tmp_path: Path, study_file, calls: list[dict[str, Any]]
) -> None:
    study_file()
    home = Home(tmp_path)
    with running(prefect_server(home)) as url:
        environment = {**os.environ, **prefect_settings(home), "PREFECT_API_URL": f"{url}/api"}
        done = subprocess.run(
            [sys.executable, "-c", WATCHING], env=environment, cwd=tmp_path, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (told,) = came(calls)
    time.sleep(0.2)
    assert (told["what"], told["site"], told["run"]) == ("wardround.site.silent", "north", "small-1")
    assert "has sent no heartbeat for" in told["text"]
    assert len(calls) == 1
