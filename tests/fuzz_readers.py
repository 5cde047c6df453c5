"""Damages well-formed files at random for a while: `make fuzz`.

Every reader has to answer with an image or with `Unreadable`, without the patient's name in it, within
the time and memory limits below. Ends with 1, and the smallest input that it can find, if one does not.
"""

import argparse
import gzip
import json
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from scanner import write_enhanced, write_series

from sites.imaging.images import Unreadable, read_image
from sites.listing.listing import read_listing
from sites.yaml_files import ConfigError

NAME = "MUELLER"
SLOWEST_S = 20
MOST_MEMORY = 6 * 2**30
VALUES = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)


def nifti(path: Path, kind: type = nib.Nifti1Image) -> None:
    image = kind(VALUES, np.diag([1, 2, 3, 1]))
    image.header["descrip"] = NAME.encode()
    nib.save(image, path)


def decathlon(folder: Path) -> None:
    pairs = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "a"}, "training": pairs}))
    (folder / "subjects.csv").write_text(f"image,subject\nimagesTr/a.nii.gz,{NAME}\n")


def table(folder: Path) -> None:
    (folder / "cases.csv").write_text(f"patient,image,label,session\n{NAME},a.nii,1,2\n")
    (folder / "labels.csv").write_text("value,name\n0,a\n1,b\n")


FILES: dict[str, Callable[[Path], None]] = {
    "a.nii": nifti,
    "b.nii": lambda path: nifti(path, nib.Nifti2Image),
    "a.nii.gz": nifti,
    "a.png": lambda path: Pictures.fromarray(VALUES[0].astype(np.uint8)).save(path),
    "a.jpg": lambda path: Pictures.fromarray(VALUES[0].astype(np.uint8)).save(path),
    "a.npz": lambda path: np.savez_compressed(path, a=VALUES),
    "series": lambda path: write_series(path, PatientName=f"{NAME}^ANNA"),
    "frames": lambda path: write_enhanced(path, PatientName=f"{NAME}^ANNA"),
}
LISTS: dict[str, Callable[[Path], None]] = {"decathlon": decathlon, "table": table}


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, int, bytes]]:
    """Draw what is done to a file, each at a position: overwritten, inserted, cut, repeated."""
    position = st.one_of(st.integers(0, 700), st.integers(0, 2**16))
    data = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]),
    )
    kinds = st.sampled_from(["over", "in", "cut", "again"])
    one = st.tuples(kinds, position, data)
    return draw(st.lists(one, min_size=1, max_size=6))


def damaged(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, at, data in changes:
        place = at % (len(content) + 1)
        if kind == "over":
            content = content[:place] + data + content[place + len(data) :]
        elif kind == "in":
            content = content[:place] + data + content[place:]
        elif kind == "cut":
            content = content[:place]
        else:
            content = content[:place] + content[place // 2 :]
    return content


def check(read: Callable[[], object], seen: Counter[str]) -> None:
    started = time.monotonic()
    try:
        read()
        seen["read"] += 1
    except (Unreadable, ConfigError) as error:
        seen["refused"] += 1
        if NAME in str(error):
            raise AssertionError("the message names the patient") from error
    if time.monotonic() - started > SLOWEST_S:
        raise AssertionError("too slow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "whole").mkdir()
        for name, make in FILES.items():
            make(data / "whole" / name)
        for name, make in LISTS.items():
            (data / "whole" / name).mkdir()
            make(data / "whole" / name)

        @settings(
            max_examples=400,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from([*FILES, *LISTS]), st.integers(0, 30), damages(), st.booleans())
        def one(name: str, number: int, changes: list[tuple[str, int, bytes]], inside: bool) -> None:
            shutil.rmtree(data / "now", ignore_errors=True)
            whole, now = data / "whole" / name, data / "now" / name
            now.parent.mkdir()
            shutil.copytree(whole, now) if whole.is_dir() else shutil.copyfile(whole, now)
            files = sorted(now.iterdir()) if now.is_dir() else [now]
            file = files[number % len(files)]
            content = file.read_bytes()
            if inside and file.name.endswith(".gz"):  # past the compression, to the reader behind it
                content = gzip.compress(damaged(gzip.decompress(content), changes), 1)
            else:
                content = damaged(content, changes)
            file.write_bytes(content)
            if name in LISTS:
                check(lambda: read_listing(now), seen)
            else:
                asked = f"{name}#a/3" if name.endswith(".npz") else name
                check(lambda: read_image(now.parent, asked), seen)

        ends = time.monotonic() + arguments.seconds
        while time.monotonic() < ends:
            one()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{seen.total()} inputs: {seen['read']} read, {seen['refused']} refused, none else; "
          f"peak memory {peak:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
