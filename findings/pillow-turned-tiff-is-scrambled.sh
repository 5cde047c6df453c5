#!/bin/bash
# Pillow 13.0.0: an uncompressed grey TIFF of 8 bits whose orientation tag is 6 or 8 (turned by a quarter), opened by its file's name,
# becomes an array with the stored shape and with its rows cut at the turned width: the same values in a wrong order, neither the
# stored picture nor the upright one, without a word. Opened as a file object, or compressed with LZW, the array is the upright picture.
# Seen: 20 rows of 33 are an array of 20 x 33 by name, and one of 33 x 20 by file object. An image and its mask that were stored in the
# two ways no longer fit.
set -euo pipefail
cd "$(mktemp -d)"
python3 -m venv env && env/bin/pip install --quiet pillow==13.0.0 numpy==2.4.6
env/bin/python - <<'PY'
import numpy as np
from PIL import Image
stored = np.random.default_rng(0).integers(0, 256, (20, 33), dtype=np.uint8)
for orientation, quarters in ((6, 3), (8, 1)):
    upright = np.rot90(stored, quarters)
    for compression in (None, "tiff_lzw"):
        Image.fromarray(stored).save("a.tif", tiffinfo={274: orientation}, compression=compression)
        by_name = np.asarray(Image.open("a.tif"))
        with open("a.tif", "rb") as file:
            by_file = np.asarray(Image.open(file))
        assert np.array_equal(by_file, upright)
        if compression:
            assert np.array_equal(by_name, upright)
            continue
        assert by_name.shape == stored.shape != upright.shape, by_name.shape
        assert not np.array_equal(by_name, stored)
        assert np.array_equal(np.sort(by_name, axis=None), np.sort(stored, axis=None))
print("as stated: by name the pixels are in a wrong order, by file object they are upright")
PY
