#!/bin/bash
# MONAI 1.6.1: NormalizeIntensity(channel_wise=True) writes its result into the image that it is given, NumPy array or tensor; without
# channel_wise, and with ScaleIntensityRangePercentiles(channel_wise=True), the image stays. Where a scan is kept in memory (a list of
# loaded cases, a test set that two models share), its raw intensities are gone after the first use, and whatever is computed from them
# later (a range, a histogram, a hash, a mask by threshold) is that of the normalised image, without a word.
# Seen: a NumPy image (2, 8, 8) of mean 100 has mean 0 after NormalizeIntensity(channel_wise=True)(image), and 100 after the other two.
set -euo pipefail
cd "$(mktemp -d)"
python3 -m venv env && env/bin/pip install --quiet torch==2.13.0 monai==1.6.1 numpy==2.4.6
env/bin/python - <<'PY'
import numpy as np
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensityRangePercentiles
made = np.random.default_rng(0).normal(100, 5, (2, 8, 8)).astype(np.float32)
for kind in (np.array, torch.from_numpy):
    image = kind(made.copy())
    NormalizeIntensity()(image)
    ScaleIntensityRangePercentiles(1, 99, b_min=-1, b_max=1, channel_wise=True)(image)
    assert abs(float(image.mean()) - 100) < 2
    NormalizeIntensity(channel_wise=True)(image)
    print(type(image).__name__, "mean", float(image.mean()))
    assert abs(float(image.mean())) < 1e-3
PY
