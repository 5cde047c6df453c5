"""Networks, parameters as data, objectives and strategies: everything that is learned."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MONAI imports MLflow, which sends usage data
