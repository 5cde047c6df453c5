"""One hospital of `nvflare_job.py`."""

import os
from pathlib import Path

import learner
import nvflare.client as flare

WARDS = sorted(Path(os.environ["PEERS_WARDS"]).glob("site-*"))


def main() -> None:
    """Score and train each model that the server sends."""
    flare.init()
    ward = WARDS[int(flare.get_site_name().rpartition("-")[2]) - 1]
    while flare.is_running():
        received = flare.receive()
        net = learner.network()
        learner.load_weights(net, received.params)
        score, _ = learner.dice(net, ward)
        print("dice", flare.get_site_name(), round(score, 4))
        learner.train(net, ward, int(os.environ["PEERS_STEPS"]))
        flare.send(flare.FLModel(params=learner.weights_of(net), metrics={"accuracy": score}))


if __name__ == "__main__":
    main()
