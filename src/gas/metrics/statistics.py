"""Files of feature statistics: our own, and the references that papers publish; nothing is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas import distributed
from gas.archives import open_zip, read_array, verify_arrays, write_arrays
from gas.display import error_text
from gas.errors import UserError
from gas.io import CHECKSUM, open_regular, read_safetensors, warn_no_checksum, write_safetensors
from gas.metrics.frechet import FeatureStatistics, extract

# The count of published references, which do not record theirs; no distance depends on it.
_UNKNOWN_COUNT = 2
# Entries of our own files that identify the features.
_FINGERPRINT = ("features", "features_of", "weights_sha256")
# Features of the widest space in use (VGG-16's); a covariance then has 128 MB.
_WIDEST = 4096
# Most bytes of such an entry.
_TEXT = 4096


def extract_all(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Return the features ``(N, F)`` of batches of samples, at least one and the same in every rank.

    Ranks (:func:`gas.distributed.process_group`) share the batches, to the same bits.
    """
    return torch.cat(list(distributed.map_sharded(lambda batch: extract(features, batch), batches)))


def accumulate(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> FeatureStatistics:
    """Return the feature statistics of batches of samples, at least two in all, holding one batch at a time.

    Ranks (:func:`gas.distributed.process_group`) share the batches, to the same bits.

    References:
        Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        COMPSTAT 1982.
    """
    count, mean, scatter = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for part in distributed.map_sharded(
        lambda batch: extract(features, batch).to("cpu", torch.float64), batches
    ):
        center, more = part.mean(0), len(part)
        offset, rest = center - mean, part - center
        scatter = scatter + rest.T @ rest + torch.outer(offset, offset) * (count * more / (count + more))
        mean = mean + offset * (more / (count + more))
        count += more
    if count < 2:
        raise UserError(f"statistics need at least two samples, got {count}")
    return FeatureStatistics(mean, scatter / (count - 1), count)


def save_statistics(
    path: str | Path, statistics: FeatureStatistics, fingerprint: Mapping[str, str] | None = None
) -> Path:
    """Write statistics, with the features' fingerprint, to ``.safetensors``, or to ``.npz`` as ``mu`` and ``sigma``."""
    path = Path(path)
    if path.suffix == ".npz":
        arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.cov.numpy()}
        arrays["count"] = np.array(statistics.count)
        arrays |= {name: np.array(text) for name, text in (fingerprint or {}).items()}
        return write_arrays(path, arrays)
    if path.suffix != ".safetensors":
        raise UserError(f"statistics go to a .safetensors or .npz file, got {path.name}")
    tensors = {"mean": statistics.mean, "cov": statistics.cov, "count": torch.tensor(statistics.count)}
    return write_safetensors(path, tensors, fingerprint or {})


def read_statistics(path: str | Path, fingerprint: Mapping[str, str] | None = None) -> FeatureStatistics:
    """Read statistics: ours, EDM's ``.npz`` (``mu``, ``sigma``) or ADM's reference batches (with images beside).

    Args:
        path: the file.
        fingerprint: that the features must have, where the file records theirs.

    Warns:
        UserWarning: when one of ours has no checksum.

    Raises:
        FileNotFoundError: when there is no such file.
        UserError: when it is damaged or was changed, holds no statistics, or those of other features.
    """
    path = Path(path)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_npz
    statistics, recorded = read(path)
    fingerprint = fingerprint or {}
    for name, text in fingerprint.items():
        if recorded.get(name, text) != text:
            of_model = "features_of" in fingerprint
            advice = ", the model's own: make them again with gas statistics --model" if of_model else ""
            raise UserError(
                f"{path} holds statistics of other features: {name} {recorded[name]}, not {text}{advice}"
            )
    if recorded.get("features") == "model" and "features_of" in fingerprint and "features_of" not in recorded:
        raise UserError(
            f"{path} holds statistics of a model's own features and does not say whose: make them again with "
            f"gas statistics --model {fingerprint['features_of']}"
        )
    return statistics


def has_images(path: str | Path) -> bool:
    """Whether an ``.npz`` has an ``arr_0``, without reading it."""
    with _archive_of(Path(path)) as archive:
        return "arr_0.npy" in archive.namelist()


def read_images(path: str | Path) -> Tensor:
    """Read ADM's ``arr_0`` of an ``.npz``, bytes ``(N, H, W, 3)``, as uint8 ``(N, 3, H, W)``."""
    with _archive_of(Path(path)) as archive:
        images = read_array(archive, "arr_0")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(f"{path} has no images: arr_0 must be bytes (N, H, W, 3)")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _read_safetensors(path: Path) -> tuple[FeatureStatistics, Mapping[str, str]]:
    try:
        tensors, metadata = read_safetensors(path, 8 * _WIDEST * (_WIDEST + 1) + (1 << 20), warn=True)
        return FeatureStatistics(tensors["mean"], tensors["cov"], _count(tensors["count"].numpy())), metadata
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} holds no statistics, or is damaged: {error_text(error)}") from error


def _read_npz(path: Path) -> tuple[FeatureStatistics, Mapping[str, str]]:
    with _archive_of(path) as archive:
        arrays = _arrays(archive, str(path))
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} has no statistics mu and sigma: make them of images with `gas statistics`")
    recorded = {name: str(arrays[name]) for name in _FINGERPRINT if name in arrays}
    try:
        mean, cov = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
        count = _count(arrays["count"]) if "count" in arrays else _UNKNOWN_COUNT
        return FeatureStatistics(mean, cov, count), recorded
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: {error_text(error)}") from error


def _arrays(archive: zipfile.ZipFile, name: str) -> dict[str, np.ndarray]:
    """The arrays of statistics: ``sigma`` after ``mu``, which says how large it can be."""
    contents: dict[str, Any] = {"mu": read_array(archive, "mu", 8 * _WIDEST)}
    width = 0 if contents["mu"] is None else contents["mu"].size
    contents["sigma"] = read_array(archive, "sigma", 8 * width * width)
    listed = [name.removesuffix(".npy") for name in archive.namelist()]
    others = listed[:64] if CHECKSUM in listed else ["count", *_FINGERPRINT]
    contents |= {key: read_array(archive, key, _TEXT) for key in others if key not in contents}
    arrays = {key: array for key, array in contents.items() if array is not None}
    if CHECKSUM in arrays:
        verify_arrays(arrays)
    elif "count" in arrays:  # only our own files have a count
        warn_no_checksum(name)
    return arrays


def _count(value: np.ndarray) -> int:
    if value.dtype.kind not in "iu" or value.size != 1:
        raise UserError(f"count must be a whole number, got {value.dtype} of shape {value.shape}")
    return int(value.reshape(-1)[0])


@contextmanager
def _archive_of(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose arrays are read one at a time."""
    try:
        with open_regular(path) as file, open_zip(file) as archive:
            yield archive
    except FileNotFoundError:
        raise
    except (ValueError, OSError, TypeError) as error:
        raise UserError(f"{path} is no .npz of plain arrays, or is damaged: {error_text(error)}") from error
