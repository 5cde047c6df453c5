#!/bin/bash
# WeasyPrint 70.0 beside Pillow 13.0.0: `import weasyprint`, in a program that also writes reports as PDF, sets
# PIL.ImageFile.LOAD_TRUNCATED_IMAGES to True for the whole process. From then on Pillow reads a picture whose file was cut off, as after an
# interrupted transfer, without an error: the rest of the image is uniform. Before the import the same file raises an OSError. A radiograph
# that is half missing so reaches training or a reader as if it were whole; the setting has to be put back after the import.
set -euo pipefail
cd "$(mktemp -d)"
python3 -m venv env && env/bin/pip install --quiet weasyprint==70.0 pillow==13.0.0 numpy==2.4.6
env/bin/python - <<'PY'
import io
import numpy as np
from PIL import Image, ImageFile

values = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
whole = io.BytesIO()
Image.fromarray(values).save(whole, "JPEG")
half = whole.getvalue()[: len(whole.getvalue()) // 2]

def read() -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(half)))

try:
    read()
    raise SystemExit("changed: a picture that is cut off is read before the import")
except OSError as error:
    print("before the import:", error)
assert ImageFile.LOAD_TRUNCATED_IMAGES is False
try:
    import weasyprint
except OSError as error:
    raise SystemExit(f"WeasyPrint needs Pango of the system: {error}")
assert ImageFile.LOAD_TRUNCATED_IMAGES is True
found = read()
rows = [row for row in found if row.min() == row.max()]
print(f"after `import weasyprint`: read without an error, {len(rows)} of {len(found)} rows are uniform")
assert len(rows) > 16
PY
