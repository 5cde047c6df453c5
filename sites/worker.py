"""A hospital's own process: `python -m sites.worker FOLDER`, orders in, one line out for each.

It reads one request a line (JSON) on standard input: an order from the machine that it shares with the
coordinator, the reference of an order in the exchange, or an answer to what waits for approval. It
answers on standard output with lines of progress (public constants of the study) and `{"done": true}`,
`{"waiting": "join"}` or `{"failed": "<class of error>"}`; details go to the hospital's own
`state/site.log`. It knows one folder, and it ends when its standard input closes, which the system
does when its parent dies.
"""

import argparse
import json
import logging
import os
import queue
import sys
import threading
import traceback
from pathlib import Path


def main() -> None:
    """Serve orders until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test-noise", type=int, help="repeatable noise, made-up hospitals only")
    arguments = parser.parse_args()
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    _serve(arguments.folder, arguments.test_noise, orders)


def _listen(orders: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # the parent is gone or done with us; a training must not outlive it


def _serve(folder: Path, test_noise: int | None, orders: "queue.Queue[str]") -> None:
    import torch

    from sites.admission.approvals import ApprovalNeeded, CodeAnswer, decide_by_code
    from sites.admission.resources import limit_memory
    from sites.code_version import code_sha256
    from sites.hospital import Hospital
    from sites.orders import Order
    from sites.protocol.dispatch import carry_out
    from sites.protocol.order_inbox import OrderRef, carry_out_ref

    code_sha256()  # of what was imported, before an upgrade changes the files
    hospital = Hospital.open(folder, test_noise)
    hospital.state.mkdir(mode=0o700, exist_ok=True)
    logging.basicConfig(
        filename=hospital.state / "site.log",
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,  # Opacus sets up a log on standard error when it is imported
    )
    limit_memory(hospital.policy.device)
    torch.set_num_threads(hospital.policy.device.threads)
    torch.backends.cudnn.allow_tf32 = False  # too coarse for the clip's bound
    _say({"ready": True, "name": hospital.name, "public_key": hospital.public_key})
    while True:
        line = orders.get()
        try:
            hospital = Hospital.open(folder, test_noise)  # as the policy is now
            request = json.loads(line)
            if "answer" in request:
                answer = CodeAnswer.model_validate(request["answer"])
                decide_by_code(hospital, answer.code, answer.by)
            elif "order_ref" in request:
                carry_out_ref(hospital, OrderRef.model_validate(request["order_ref"]), _report)
            else:
                carry_out(hospital, Order.model_validate(request), _report)
            _say({"done": True})
        except ApprovalNeeded as needed:
            _say({"waiting": needed.act})
        except Exception as error:
            # Whatever went wrong is for the hospital's eyes; outside, only its class is told.
            where = "".join(traceback.format_tb(error.__traceback__))  # no message: it may name a file
            logging.getLogger("wardround.site").error(
                "the order failed: %s\n%s", type(error).__name__, where
            )
            _say({"failed": type(error).__name__})


def _report(what: str, step: int, of: int) -> None:
    _say({"progress": what, "step": step, "of": of})


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
