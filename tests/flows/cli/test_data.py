"""`wardround data`: hospitals from public or made-up scans, kept apart from others."""

from pathlib import Path

from typer.testing import CliRunner

from flows.cli.main import app


def test_hospitals_beside_others_are_told_and_made_again_in_silence(tmp_path: Path, small_wards) -> None:
    out = small_wards(tmp_path / "wards")
    made = CliRunner().invoke(app, ["data", "phantoms", "--out", str(out)])
    assert made.exit_code == 0 and made.stderr == ""  # the same four hospitals
    assert f"{out / 'north'}: was there, and stays with all that it has spent" in made.stdout
    (out / "far").mkdir()
    (out / "far" / "site.yaml").write_text((out / "north" / "site.yaml").read_text())
    made = CliRunner().invoke(app, ["data", "phantoms", "--out", str(out)])
    assert made.exit_code == 0 and "holds other hospitals too (far)" in made.stderr


def test_a_folder_in_place_of_a_sets_file_is_refused(tmp_path: Path) -> None:
    tried = CliRunner().invoke(app, ["data", "pneumonia", "--from", str(tmp_path)])
    assert tried.exit_code == 2 and "expected the file pneumoniamnist.npz" in tried.stderr
