"""What is learned: networks, parameters as data, objectives, strategies."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MONAI imports MLflow, which would call home
