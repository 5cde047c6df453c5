"""Process of one hospital, `python -m sites.worker FOLDER`: it reads orders and answers each.

It reads one JSON request a line from standard input. A request is one of three: an order, where the
coordinator is on the same machine; a reference to an order in the exchange; or an answer to a request
that waits for approval. On standard output it writes lines of progress (public constants of the study).
It ends each request with `{"done": true}`, `{"waiting": "join"}` or `{"failed": "<kind>"}`. The kind is
one of `CONDITIONS`, which are about the order, the exchange, the clock or the policy, or `Fault`: what
went wrong with a patient's scan must not be visible outside. Details go to the hospital's own
`state/site.log`. The process uses one folder. It ends when its standard input closes, which the
operating system does when the parent process dies.
"""

import argparse
import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from models import spans
from models.files import private_folder

SPANS = "spans.jsonl"
"""The file in a folder's state with the spans of its processes, where they are recorded."""
CONDITIONS = frozenset(
    {"BadOrder", "ClockWentBack", "Closed", "ConfigError", "Drained", "Expired", "LedgerError"}
    | {"StorageFailed"}
)
"""Classes of errors that the coordinator sees: none of them depends on what a scan shows."""


def load() -> None:
    """Import what a hospital's process needs, and hash that code before an upgrade changes it."""
    import torch  # noqa: F401

    from sites.admission import approvals, resources  # noqa: F401
    from sites.code_version import code_sha256
    from sites.protocol import dispatch, order_inbox  # noqa: F401

    code_sha256()


def warm_up() -> None:
    """Have torch import what it imports with its first optimizer, which takes most of a second."""
    import torch

    torch.optim.SGD([torch.zeros(1)], lr=1.0)


def main(given: Sequence[str] | None = None) -> None:
    """Serve orders until standard input closes; `given` are the arguments, by default the process's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test-noise", type=int, help="repeatable noise, made-up hospitals only")
    parser.add_argument("--spans", action="store_true", help=f"record spans in state/{SPANS}")
    arguments = parser.parse_args(given)
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    if arguments.spans:
        private_folder(arguments.folder / "state")
        spans.record_to(arguments.folder / "state" / SPANS)
    _serve(arguments.folder, arguments.test_noise, orders)


def _listen(orders: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # the parent has died or closed the pipe; training must not outlive it


def _serve(folder: Path, test_noise: int | None, orders: "queue.Queue[str]") -> None:
    import torch

    from sites.admission.approvals import ApprovalNeeded
    from sites.admission.requests import CodeAnswer, decide_by_code
    from sites.admission.resources import limit_memory
    from sites.hospital import Hospital
    from sites.orders import Order
    from sites.protocol.dispatch import carry_out
    from sites.protocol.order_inbox import OrderRef, carry_out_ref

    load()
    hospital = Hospital.open(folder, test_noise)
    hospital.close_state()
    logging.basicConfig(
        filename=hospital.state / "site.log",
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,  # replaces the log on standard error that importing Opacus sets up
    )
    limit_memory(hospital.policy.device)
    torch.set_num_threads(hospital.policy.device.threads)
    _answer({"ready": True, "name": hospital.name, "public_key": hospital.public_key})
    while True:
        line = orders.get()
        try:
            hospital = Hospital.open(folder, test_noise)  # with the current policy
            hospital.security_log.write_if_changed("policy_changed", folder / "site.yaml")
            request = json.loads(line)
            if "answer" in request:
                answer = CodeAnswer.model_validate(request["answer"])
                decide_by_code(hospital, answer.code, answer.by)
            elif "order_ref" in request:
                carry_out_ref(hospital, OrderRef.model_validate(request["order_ref"]), _report)
            else:
                carry_out(hospital, Order.model_validate(request), _report)
            _answer({"done": True})
        except ApprovalNeeded as needed:
            _answer({"waiting": needed.act})
        except Exception as error:
            # Details stay in the hospital's log; only the class of the error leaves.
            where = "".join(traceback.format_tb(error.__traceback__))  # no message: it may name a file
            logging.getLogger("wardround.site").error(
                "the order failed: %s\n%s", type(error).__name__, where
            )
            kind = type(error).__name__
            _answer({"failed": kind if kind in CONDITIONS else "Fault"})


def _report(what: str, step: int, of: int) -> None:
    _answer({"progress": what, "step": step, "of": of})


def _answer(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
