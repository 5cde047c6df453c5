import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from PIL.PngImagePlugin import PngInfo

from sites.deidentification.deidentify import picture_without_text
from sites.imaging import image, nifti
from sites.imaging.images import Image, Unreadable, read_image


def picture(path: Path, values: np.ndarray, words: dict[str, str] | None = None) -> None:
    info = PngInfo()
    for key, text in (words or {}).items():
        info.add_text(key, text)
    Pictures.fromarray(values).save(path, **({"pnginfo": info} if path.suffix == ".png" else {}))


def fault_of(data: Path, name: str) -> str:
    with pytest.raises(Unreadable) as caught:
        read_image(data, name)
    assert name.partition("#")[0] not in str(caught.value)
    return caught.value.fault


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg"])
def test_a_picture_is_read_as_grey_values_with_its_text(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 255, 20 * 24).reshape(20, 24).astype(np.uint8)
    picture(tmp_path / f"a{suffix}", values, {"Comment": "MUELLER^ANNA"})
    image = read_image(tmp_path, f"a{suffix}")
    assert np.abs(image.voxels - values).max() <= (0 if suffix.lower() == ".png" else 8)
    assert image.spacing_mm == (1.0, 1.0)
    assert ("MUELLER^ANNA" in image.words) == (suffix == ".png")


def test_sixteen_bits_stay_and_colours_become_grey(tmp_path: Path) -> None:
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    picture(tmp_path / "deep.png", deep)
    assert np.array_equal(read_image(tmp_path, "deep.png").voxels, deep)
    picture(tmp_path / "colour.png", np.full((8, 8, 3), 90, dtype=np.uint8))
    assert read_image(tmp_path, "colour.png").voxels.tolist() == [[90.0] * 8] * 8


def test_one_image_of_an_npz_file_is_read_by_array_and_index(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    np.savez_compressed(tmp_path / "set.npz", train_images=stack)
    assert np.array_equal(read_image(tmp_path, "set.npz#train_images/3").voxels, stack[3])
    assert fault_of(tmp_path, "set.npz#train_images/9") == "unreadable"
    assert fault_of(tmp_path, "set.npz#other/0") == "unreadable"


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("exploited",))


def test_an_npz_file_with_a_pickle_in_it_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "evil.npz", a=np.array([Exploit()], dtype=object))
    assert fault_of(tmp_path, "evil.npz#a/0") == "unreadable"
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("a.npy", pickle.dumps(Exploit()))
    assert fault_of(tmp_path, "raw.npz#a/0") == "unreadable"
    assert not (tmp_path / "exploited").exists()


def test_nothing_larger_than_a_scan_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (image, nifti):
        monkeypatch.setattr(module, "LARGEST_BYTES", 10**6)
    zeros = np.zeros((200, 100, 100), dtype=np.float32)
    nib.save(nib.Nifti1Image(zeros, np.eye(4)), tmp_path / "bomb.nii.gz")
    np.savez_compressed(tmp_path / "bomb.npz", a=zeros)
    (tmp_path / "endless.nii.gz").write_bytes(gzip.compress(bytes(4 * 10**6)))
    for name in ("bomb.nii.gz", "bomb.npz#a/0", "endless.nii.gz"):
        with pytest.raises(Unreadable, match="larger than any scan"):
            read_image(tmp_path, name)


def test_a_picture_too_large_to_unpack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png", np.zeros((200, 200), dtype=np.uint8))
    monkeypatch.setattr(Pictures, "MAX_IMAGE_PIXELS", 10_000)
    assert fault_of(tmp_path, "a.png") == "unreadable"


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([1, 1, 0, 1.0]), np.full((4, 4), np.nan)])
def test_an_affine_that_cannot_be_inverted_is_named(affine: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.float32), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[252:256] = np.array([0, 1], dtype="<i2").tobytes()  # qform_code, sform_code
    content[280:328] = affine[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert fault_of(tmp_path, "a.nii") == "affine"


def test_the_text_of_a_nifti_header_and_its_extensions_is_kept_for_the_search(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.float32), np.eye(4))
    image.header["descrip"] = b"MUELLER^ANNA"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 19560403"))
    nib.save(image, tmp_path / "a.nii")
    words = read_image(tmp_path, "a.nii").words
    assert "MUELLER^ANNA" in words
    assert any("19560403" in text for text in words)


@pytest.mark.parametrize("name", ["../outside.nii", "link.nii", "/etc/hostname"])
def test_a_file_outside_the_data_folder_is_not_opened(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "outside.nii").write_bytes(b"secret")
    (data / "link.nii").symlink_to(tmp_path / "outside.nii")
    assert fault_of(data, name) == "outside"


def test_names_with_odd_characters_are_read_and_a_missing_or_unknown_file_is_named(
    tmp_path: Path,
) -> None:
    for name in ("Müller, Anna (2).png", "a\nb.png", "x' OR 1=1;--.png"):
        picture(tmp_path / name, np.eye(8, dtype=np.uint8))
        assert read_image(tmp_path, name).voxels.shape == (8, 8)
    assert fault_of(tmp_path, "gone.nii") == "missing"
    (tmp_path / "a.docx").write_bytes(b"")
    assert fault_of(tmp_path, "a.docx") == "unreadable"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".nii", ".nii.gz", ".png", ".jpg", ".npz"]),
    st.integers(0, 400), st.binary(min_size=1, max_size=8), st.integers(0, 300),
)  # fmt: skip
def test_whatever_bytes_a_file_has_the_answer_is_an_image_or_unreadable(
    tmp_path: Path, suffix: str, position: int, change: bytes, cut: int
) -> None:
    path = tmp_path / f"a{suffix}"
    values = np.arange(512, dtype=np.uint8).reshape(8, 8, 8)
    if suffix.startswith(".nii"):
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    elif suffix == ".npz":
        np.savez_compressed(path, a=values)
    else:
        picture(path, values[0])
    whole = bytearray(path.read_bytes())
    whole[position : position + len(change)] = change
    path.write_bytes(bytes(whole[: len(whole) - cut]))
    with suppress(Unreadable):
        assert isinstance(read_image(tmp_path, f"a{suffix}#a/0"), Image)


def claims(shape: tuple[int, ...]) -> bytes:
    """Return the header of an npy array that claims a shape, without an array after it."""
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def test_an_array_whose_header_claims_more_than_there_is_room_for_is_unreadable(
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", claims((2**20, 2**15, 2**15)))
    assert fault_of(tmp_path, "a.npz#a/0") == "unreadable"


def test_links_that_lead_to_themselves_and_pipes_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    assert fault_of(tmp_path, "loop.nii") == "missing"
    os.mkfifo(tmp_path / "pipe.nii")
    assert fault_of(tmp_path, "pipe.nii") == "unreadable"
    assert fault_of(tmp_path, "odd\0name.nii") == "missing"
    assert fault_of(tmp_path, "x" * 5000 + ".nii") == "missing"


@pytest.mark.parametrize("side", [1e-9, 1e9])
def test_sides_of_voxels_that_are_no_lengths_are_a_broken_affine(side: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([side, 1, 1 / side, 1]))
    nib.save(image, tmp_path / "a.nii")
    assert fault_of(tmp_path, "a.nii") == "affine"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("turn", ["RAS", "LPS", "PIR", "SLA"])
def test_a_volume_is_turned_and_scaled_as_nibabel_does(kind: type, turn: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 500, (5, 6, 7)).astype(np.int16)
    ornt = nib.orientations.axcodes2ornt(turn)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(ornt, values.shape)
    image = kind(values, affine)
    image.header.set_slope_inter(2.0, -7.0)
    nib.save(image, tmp_path / "a.nii.gz")
    ours = read_image(tmp_path, "a.nii.gz")
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
    assert np.allclose(ours.voxels, theirs.get_fdata(), atol=1e-3)
    assert np.allclose(ours.affine, theirs.affine)
    assert ours.spacing_mm == pytest.approx(theirs.header.get_zooms())
    assert ours.voxels.dtype == np.float32


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_read_upright_as_every_viewer_shows_it(orientation: int, tmp_path: Path) -> None:
    up = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    undo = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.T,
            6: np.rot90, 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    stored = Pictures.fromarray(np.ascontiguousarray(undo.get(orientation, lambda a: a)(up)))
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path, "a.png").voxels, up)
    (tmp_path / "clean.png").write_bytes(picture_without_text(tmp_path / "a.png"))
    assert np.array_equal(read_image(tmp_path, "clean.png").voxels, up)
    assert not Pictures.open(tmp_path / "clean.png").getexif()


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Return a PNG of so many bits a pixel (PNG specification, third edition, 11.2.1)."""
    rows = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    packed = np.packbits(rows.reshape(len(values), -1), axis=-1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    chunks = chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_mask_of_few_bits_has_its_stored_values(bits: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (9, 11))
    (tmp_path / "mask.png").write_bytes(grey_png(values, bits))
    assert np.array_equal(read_image(tmp_path, "mask.png", is_label=True).voxels, values)


def test_a_mask_with_a_palette_or_of_one_bit_has_its_stored_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    indexed = Pictures.fromarray(values, mode="P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "indexed.png")
    Pictures.fromarray(values == 1).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path, "indexed.png", is_label=True).voxels, values)
    assert np.array_equal(read_image(tmp_path, "bits.png", is_label=True).voxels, values == 1)
    assert read_image(tmp_path, "bits.png").voxels.max() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_has_the_values_that_were_stored(dtype: type, tmp_path: Path) -> None:
    values = np.arange(63, dtype=dtype).reshape(9, 7) * 200 % 251
    Pictures.fromarray(values.astype(dtype)).save(tmp_path / "a.tif")
    for is_label in (False, True):
        assert np.array_equal(read_image(tmp_path, "a.tif", is_label=is_label).voxels, values)


def test_a_page_of_a_tiff_is_named_by_its_number(tmp_path: Path) -> None:
    pages = [Pictures.fromarray(np.full((9, 7), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert read_image(tmp_path, "a.tiff#2").voxels.tolist() == [[2.0] * 7] * 9
    with pytest.raises(Unreadable, match="the file has 3 pages; name one in the list, as file#0"):
        read_image(tmp_path, "a.tiff")
    with pytest.raises(Unreadable, match="expected the number of a page below 3, got '3'"):
        read_image(tmp_path, "a.tiff#3")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_turned_tiff_is_upright(mode: str, compression: str | None, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 33) + ((3,) if mode == "RGB" else ()))
    values = values.astype(np.uint16 if mode == "I;16" else np.uint8)
    for orientation, turns in ((6, 3), (8, 1), (3, 2)):
        path = tmp_path / f"{orientation}.tif"
        Pictures.fromarray(values).save(path, tiffinfo={274: orientation}, compression=compression)
        image = read_image(tmp_path, path.name)
        found = image.voxels if image.colours is None else np.moveaxis(image.colours, 0, -1)
        assert np.array_equal(found, np.rot90(values, turns))
        bare = np.asarray(Pictures.open(io.BytesIO(picture_without_text(path))))
        assert np.array_equal(bare, np.rot90(values, turns))


def test_tiff_values_are_as_stored_with_their_sign_and_white_is_zero_as_shown(tmp_path: Path) -> None:
    signed = np.arange(-60, 60, dtype=np.int8).reshape(10, 12)
    tifffile.imwrite(tmp_path / "signed.tif", signed)
    assert np.array_equal(read_image(tmp_path, "signed.tif").voxels, signed)
    for kind in (np.uint8, np.uint16):
        values = np.arange(120, dtype=kind).reshape(10, 12)
        tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
        shown = read_image(tmp_path, "white.tif").voxels
        assert np.array_equal(shown, np.iinfo(kind).max - values.astype(float))
        assert np.array_equal(read_image(tmp_path, "white.tif", is_label=True).voxels, values)


@pytest.mark.parametrize("reads_parts", [False, True], ids=["", "where Pillow may read on"])
def test_a_file_that_is_cut_off_is_called_so(
    reads_parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", reads_parts)
    values = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    volume = nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.eye(4))
    for name in ("a.png", "a.jpg", "a.nii", "a.nii.gz"):
        path = tmp_path / name
        if "nii" in name:
            nib.save(volume, path)
        else:
            Pictures.fromarray(values).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(Unreadable, match="cut off or damaged"):
            read_image(tmp_path, name)
