"""The study of `benchmarks/peers.py` in Flower.

`peers.py` starts it: PEERS_WARDS (the hospitals' folder), PEERS_ROUNDS and PEERS_STEPS (a round's)
come from the environment.
"""

import os
import sys
from pathlib import Path

import learner
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

WARDS = sorted(Path(os.environ.get("PEERS_WARDS", ".")).glob("site-*"))
STEPS = int(os.environ.get("PEERS_STEPS", "0"))

client = ClientApp()


def _network(message: Message) -> nn.Module:
    net = learner.network()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train at one hospital."""
    net = _network(message)
    count = learner.train(net, WARDS[int(context.node_config["partition-id"])], STEPS)
    content = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"num-examples": count}),
    }
    return Message(content=RecordDict(content), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the global model at one hospital."""
    ward = WARDS[int(context.node_config["partition-id"])]
    score, count = learner.dice(_network(message), ward)
    content = {"metrics": MetricRecord({"dice": score, "num-examples": count})}
    return Message(content=RecordDict(content), reply_to=message)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Average over all hospitals, round after round."""
    del context
    strategy = FedAvg(min_train_nodes=len(WARDS), min_evaluate_nodes=len(WARDS))
    first = ArrayRecord(learner.network().state_dict())
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=int(os.environ["PEERS_ROUNDS"]))
    scores = result.evaluate_metrics_clientapp
    print("dice", [round(float(scores[k]["dice"]), 4) for k in sorted(scores)])


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    sys.exit(run_simulation(server, client, len(WARDS), backend_config=resources))
