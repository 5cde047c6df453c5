"""A model as a MONAI bundle, which `python -m monai.bundle run` executes without Wardround.

Its configuration repeats in MONAI's terms the steps of `sites.imaging.preprocessing` and
`sites.inference`; a test compares the two. The weights are safetensors: nothing is unpickled.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows import served_model
from flows.decisions import release_proof
from flows.decisions.people import People
from flows.decisions.release_proof import NotProven, ReleaseProof
from flows.decisions.release_status import ReleasedVersion
from flows.runs import artifacts
from flows.served_model import ServedModel
from models.files import sha256_of, write_atomically
from models.settings.images import Patches, Percentiles, PreprocessingConfig, Window
from models.settings.tasks import RGB, ClassificationConfig, RegressionConfig
from sites.inference import WINDOWS
from sites.study import Study
from sites.yaml_files import ConfigError

KEY = "image"
PICTURES = {
    "reader": "PILReader",
    "reverse_indexing": False,
    "converter": "$lambda picture: picture if picture.mode[0] in 'IF' else picture.convert('L')",
}
"""The options to read pictures: rows first, in shades of grey."""
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
"""What `python -m monai.bundle verify_metadata` holds the metadata against."""
RUN = "python -m monai.bundle run --config_file configs/inference.json --bundle_root ."
IMPORTS = (
    "$import json",
    "$import torch",
    "$from safetensors.torch import load_file",
    "$from opacus.validators import ModuleValidator",
)


def write(
    model: ServedModel, weights: bytes, sha256: str, folder: Path, proof: ReleaseProof | None = None
) -> None:
    """Write a bundle into a folder that is empty or not there.

    Args:
        proof: the checked proof of the model's release, which the bundle then carries; None without one.

    Raises:
        ConfigError: the folder has files in it already, or MONAI can't build the network.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: expected an empty folder, got one with files in it.")
    study = model.study
    if study.network.name == "ViT":
        raise ConfigError(
            f"{study.name}: MONAI's own ViT has norms that nothing uses and that this model does not "
            f"have; `wardround predict` reads it."
        )
    write_atomically(folder / "models" / served_model.WEIGHTS, weights)
    write_atomically(
        folder / "models" / served_model.DESCRIPTION, served_model.description(study, sha256)
    )
    for name, content in (("metadata", _metadata(study, sha256)), ("inference", _inference(study))):
        write_atomically(folder / "configs" / f"{name}.json", json.dumps(content, indent=1).encode())
    if proof:
        data = release_proof.to_bytes(proof)
        write_atomically(folder / "docs" / artifacts.PROOF, data)
    write_atomically(folder / "docs" / "README.md", _readme(study, sha256, proof is not None).encode())


def check(folder: Path, people: People) -> ReleasedVersion:
    """Check that people released a bundle's model, and that its configuration is the study's.

    Raises:
        ConfigError: the folder lacks a file of a bundle.
        NotProven: nothing in the bundle proves its release, or its configuration is another.
    """
    try:
        weights = (folder / "models" / served_model.WEIGHTS).read_bytes()
        found = json.loads((folder / "configs" / "inference.json").read_bytes())
        described = (folder / "models" / served_model.DESCRIPTION).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: expected a bundle's folder: {error}") from error
    path = folder / "docs" / artifacts.PROOF
    if not path.is_file():
        raise NotProven(f"The bundle has no docs/{artifacts.PROOF}: its model was a candidate.")
    proof = release_proof.parsed(path.read_bytes())
    released = release_proof.check_proof(proof, sha256_of(weights), proof.study, people)
    if described != served_model.description(proof.study, sha256_of(weights)):
        raise NotProven(f"Its models/{served_model.DESCRIPTION} is not that of the released study.")
    if found != json.loads(json.dumps(_inference(proof.study))):
        raise NotProven(
            "Its configs/inference.json is not what this version of Wardround writes for the study; "
            "somebody, or another version, has written another."
        )
    return released


def _metadata(study: Study, sha256: str) -> dict[str, Any]:
    task = study.task
    background = {"0": "background"} if task.kind == "segmentation" else {}
    channels = background | {str(value): name for value, name in task.labels.items()}
    spatial = ["*"] * task.dims
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported from study {study.sha256}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {
            name: version(name) for name in ("nibabel", "safetensors", "opacus", "fire")
        },
        "name": study.name,
        "task": f"{task.kind} in {task.dims}D",
        "description": study.purpose or "not stated",
        "authors": study.card.authors or "not stated",
        "copyright": study.card.licence or "not stated",
        "intended_use": study.card.intended_use or "not stated",
        "weights_sha256": sha256,
        "network_data_format": {
            "inputs": {
                KEY: {
                    "type": "image", "format": "magnitude", "num_channels": task.in_channels,
                    "spatial_shape": spatial, "dtype": "float32", "value_range": [],
                    "is_patch_data": False, "channel_def": dict(enumerate(task.input_names)),
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities", "format": task.kind, "num_channels": task.out_channels,
                    "spatial_shape": spatial if task.kind == "segmentation" else [],
                    "dtype": "float32", "value_range": [0, 1], "is_patch_data": False,
                    "channel_def": channels,
                }
            },
        },
    }  # fmt: skip


def _inference(study: Study) -> dict[str, Any]:
    """Return the configuration: an image from `--image`, its result in `--output_dir`."""
    is_map = study.task.kind == "segmentation"
    steps = [
        "$torch.set_grad_enabled(False)",
        # MONAI's DynUNet holds layers under two names, of which the weights have one
        "$@network.load_state_dict({**@network.state_dict(), **@weights})",
        "$@network.eval()",
        "$[@postprocessing({**d, 'pred': @inferer(d['image'][None], @network)[0]}) for d in @dataset]",
    ]
    return {
        "imports": list(IMPORTS),
        "bundle_root": ".",
        "image": "",
        "output_dir": "$@bundle_root + '/output'",
        "weights": f"$load_file(@bundle_root + '/models/{served_model.WEIGHTS}')",
        **_network(study),
        "preprocessing": {"_target_": "Compose", "transforms": _before(study)},
        "dataset": {
            "_target_": "Dataset",
            "data": [{KEY: "@image"}],
            "transform": "@preprocessing",
        },
        "inferer": _inferer(study.preprocessing, is_map=is_map),
        "postprocessing": {"_target_": "Compose", "transforms": _after(study)},
        "run": steps,
    }  # fmt: skip


def _network(study: Study) -> dict[str, Any]:
    config = study.network
    task = study.task
    arguments = config.arguments(task.dims, task.out_channels, task.in_channels)
    built = {"_target_": f"monai.networks.nets.{config.name}", **arguments}
    given = "".join(f", {key}={value!r}" for key, value in (config.fixed or {}).items())
    fixed = "@network_def" if config.fixed is None else f"$ModuleValidator.fix(@network_def{given})"
    return {"network_def": built, "network": fixed}


def _before(study: Study) -> list[dict[str, Any]]:
    config, dims = study.preprocessing, study.task.dims
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": KEY, "image_only": True, **_reader(study)},
        {"_target_": "EnsureChannelFirstd", "keys": KEY},
        {"_target_": "EnsureTyped", "keys": KEY, "dtype": "$torch.float32"},
        {"_target_": "CopyItemsd", "keys": KEY, "names": "own"},
    ]
    if dims == 3:
        steps.append({"_target_": "Orientationd", "keys": KEY, "axcodes": "RAS", "labels": None})
    if config.spacing_mm:
        steps.append(
            {"_target_": "Spacingd", "keys": KEY, "pixdim": list(config.spacing_mm), "mode": "bilinear"}
        )
    if config.crop == "foreground":
        brighter = "$lambda x: x > x.double().mean(tuple(range(1, x.ndim)), keepdim=True)"
        steps.append(
            {"_target_": "CropForegroundd", "keys": KEY, "source_key": KEY, "select_fn": brighter,
             "allow_smaller": False}
        )  # fmt: skip
    steps.append({"keys": KEY, **_intensity(config)})
    if config.fit == "resize":
        mode = "trilinear" if dims == 3 else "bilinear"
        steps.append(
            {"_target_": "Resized", "keys": KEY, "spatial_size": list(config.shape), "mode": mode,
             "anti_aliasing": True}
        )  # fmt: skip
    if study.task.network_kind == "classification":
        steps.append(
            {"_target_": "ResizeWithPadOrCropd", "keys": KEY, "spatial_size": list(config.shape)}
        )
    elif not isinstance(config.fit, Patches):
        divisors = list(study.network.divisors(dims))
        steps.append({"_target_": "DivisiblePadd", "keys": KEY, "k": divisors, "method": "end"})
    return steps


def _intensity(config: PreprocessingConfig) -> dict[str, Any]:
    intensity = config.intensity
    if isinstance(intensity, Percentiles):
        return {
            "_target_": "ScaleIntensityRangePercentilesd", "lower": intensity.low,
            "upper": intensity.high, "b_min": -1, "b_max": 1, "clip": True, "channel_wise": True,
        }  # fmt: skip
    if isinstance(intensity, Window):
        low, high = (intensity.centre + side * intensity.width / 2 for side in (-1, 1))
        return {
            "_target_": "ScaleIntensityRanged", "a_min": low, "a_max": high, "b_min": -1, "b_max": 1,
            "clip": True,
        }  # fmt: skip
    return {"_target_": "NormalizeIntensityd", "channel_wise": True}


def _reader(study: Study) -> dict[str, Any]:
    if study.task.dims == 3:
        return {}
    if study.task.channels == RGB:
        return {**PICTURES, "converter": "$lambda picture: picture.convert('RGB')"}
    return dict(PICTURES)


def _inferer(config: PreprocessingConfig, *, is_map: bool) -> dict[str, Any]:
    if is_map and isinstance(config.fit, Patches):
        return {
            "_target_": "SlidingWindowInferer", "roi_size": list(config.shape),
            "sw_batch_size": WINDOWS, "overlap": config.fit.overlap, "mode": "gaussian",
        }  # fmt: skip
    return {"_target_": "SimpleInferer"}


def _answer_of(task: ClassificationConfig | RegressionConfig) -> str:
    """Return the expression for an answer, `(C,)`, of a network's output `x`."""
    if task.kind == "regression":
        return f"({task.low} + {task.high - task.low} * x.clamp(0, 1))"
    return "torch.sigmoid(x)" if task.multi_label else "torch.softmax(x, 0)"


def _after(study: Study) -> list[dict[str, Any]]:
    task = study.task
    if task.kind != "segmentation":
        how = _answer_of(task)
        names = list(task.labels.values())
        printed = f"$lambda x: print(json.dumps(dict(zip({names!r}, map(float, {how})))))"
        return [{"_target_": "Lambdad", "keys": "pred", "func": printed, "overwrite": False}]
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "ResampleToMatchd", "keys": "pred", "key_dst": "own", "mode": "bilinear",
         "padding_mode": "zeros" if study.preprocessing.crop == "foreground" else "border",
         "align_corners": True},
        # voxels outside the crop are background
        {"_target_": "Lambdad", "keys": "pred",
         "func": "$lambda x: torch.cat([x[:1] + 1 - x.sum(0, keepdim=True), x[1:]])"},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "mask",
         "output_dtype": "$torch.uint8", "resample": False, "separate_folder": False,
         "print_log": False},
    ]  # fmt: skip


def _given(study: Study) -> str:
    """Return what `--image` gets: a file, or a list with one file for each channel."""
    names = study.task.channel_names
    return "scan.nii.gz" if len(names) == 1 else f'"[{", ".join(f"{n}.nii.gz" for n in names)}]"'


def _readme(study: Study, sha256: str, is_released: bool) -> str:
    proof = (
        f"""`{artifacts.PROOF}` has the signed decisions of the people who released the model. With your
own copy of their public keys (`people.yaml`), check them, the weights and the configuration:

    wardround verify-bundle . --people people.yaml"""
        if is_released
        else "No release came with this model: it counts as a candidate, for research only."
    )
    return f"""# {study.name}

{study.purpose or "Its purpose is not stated."}

Intended use: {study.card.intended_use or "not stated"}.
Not for: {study.card.out_of_scope or "not stated"}.

    {RUN} --image {_given(study)}

All channels must be there and on one grid. MONAI's readers ignore the EXIF orientation of photographs
and units of metres. Where the study crops, answers fade into background within one voxel of the crop.
`wardround predict` has none of these limits.

The weights are `models/{served_model.WEIGHTS}` with sha256 {sha256}; the study is {study.sha256}.

{proof}
"""
