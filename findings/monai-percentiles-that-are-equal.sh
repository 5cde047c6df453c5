#!/bin/bash
# MONAI 1.6.1: ScaleIntensityRangePercentiles with clip=True, on an image whose two percentiles are equal (a skull-stripped or mask-like
# scan that is nearly all background), neither scales nor clips: it warns, subtracts the percentile, adds b_min, and returns before
# the clipping. Values far outside [b_min, b_max] go on into training.
# Seen: an image of 8000 zeros with one voxel of 1000, percentiles 0.5 and 99.5 to [-1, 1] with clip=True, gives -1 and 999.
set -euo pipefail
cd "$(mktemp -d)"
python3 -m venv env && env/bin/pip install --quiet torch==2.13.0 monai==1.6.1 numpy==2.4.6
env/bin/python - <<'PY'
import torch
from monai.transforms import ScaleIntensityRangePercentiles
image = torch.zeros(1, 20, 20, 20); image[0, 10, 10, 10] = 1000
found = ScaleIntensityRangePercentiles(0.5, 99.5, b_min=-1, b_max=1, clip=True)(image)
print("from", float(found.min()), "to", float(found.max()))
assert (float(found.min()), float(found.max())) == (-1.0, 999.0)
PY
