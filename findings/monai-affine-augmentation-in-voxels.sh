#!/bin/bash
# MONAI 1.6.1: RandAffine and Affine rotate in voxel indices, not in mm, also when the image is a MetaTensor whose affine states the
# voxels' sides. On scans of 1 x 1 x 5 mm, as prostate T2 or older CT, a rotation about an axis in the plane shears the anatomy: two
# bars at a right angle stand at another angle afterwards, and lengths change by up to the ratio of the sides.
# Seen: with rotate_params of 45 degrees about x, a bar of 60 mm along z (12 slices) and one of 60 mm along y (60 rows), which are at 90
# degrees, are at 20 degrees in mm afterwards (160 the other way round).
set -euo pipefail
cd "$(mktemp -d)"
python3 -m venv env && env/bin/pip install --quiet torch==2.13.0 monai==1.6.1 numpy==2.4.6
env/bin/python - <<'PY'
import numpy as np, torch
from monai.data import MetaTensor
from monai.transforms import Affine
mm = np.array([1.0, 1.0, 5.0])
def angle(first, second):
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return float(np.degrees(np.arccos(cosine)))
def direction(image):
    places = np.argwhere(image > 0.3) * mm
    values, vectors = np.linalg.eigh(np.cov((places - places.mean(0)).T))
    along = vectors[:, -1]
    return along if along[np.abs(along).argmax()] > 0 else -along
bars = []
for part in ((slice(48, 52), slice(48, 52), slice(14, 26)), (slice(48, 52), slice(20, 80), slice(19, 21))):
    image = torch.zeros(1, 100, 100, 40); image[0][part] = 1
    image = MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 1, 5, 1])))
    turned = Affine(rotate_params=(np.pi / 4, 0, 0), padding_mode="zeros", image_only=True)(image)
    bars.append((direction(np.asarray(image)[0]), direction(np.asarray(turned)[0])))
before, after = (angle(bars[0][k], bars[1][k]) for k in (0, 1))
before, after = (min(each, 180 - each) for each in (before, after))
print(f"at {before:.0f} degrees before, {after:.0f} after (or {180 - after:.0f})")
assert abs(before - 90) < 2
assert after < 40, "the angle was kept: the rotation is in mm now"
PY
