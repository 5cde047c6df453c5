"""The study of `benchmarks/peers.py` in NVIDIA FLARE's simulator: `python nvflare_job.py WORKSPACE`."""

import os
import sys
from pathlib import Path

import learner
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

WARDS = sorted(Path(os.environ["PEERS_WARDS"]).glob("site-*"))


def main() -> None:
    """Run the job with a process for each hospital, as many at a time as there are cores."""
    recipe = FedAvgRecipe(
        name="peers",
        model=learner.network(),
        min_clients=len(WARDS),
        num_rounds=int(os.environ["PEERS_ROUNDS"]),
        train_script=str(Path(__file__).parent / "nvflare_client.py"),
    )
    environment = SimEnv(
        num_clients=len(WARDS), num_threads=os.cpu_count() or 1, workspace_root=sys.argv[1]
    )
    recipe.execute(environment)


if __name__ == "__main__":
    main()
