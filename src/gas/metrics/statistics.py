"""Statistics of features on disk: our own, and the references that papers publish; nothing is unpickled."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gas import processes
from gas.files import in_order, write_bytes
from gas.metrics.frechet import FeatureStatistics, extract

__all__ = ["accumulate", "extract_all", "has_images", "read_images", "read_statistics", "save_statistics"]

# What a published reference leaves unsaid; no distance asks for it.
_UNSAID = 2
# What our own say of their features.
_SAID = ("features", "features_of", "weights_sha256")


def extract_all(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Return the features ``(N, F)`` of samples that come in batches.

    Several processes (:func:`gas.processes.together`) share the batches, to the same bits.

    Args:
        features: ``(B, *) -> (B, F)``.
        batches: of samples, one at least, the same in every process.

    Raises:
        ValueError: as :func:`gas.metrics.extract` does.
    """
    return torch.cat(list(processes.spread(lambda batch: extract(features, batch), batches)))


def accumulate(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> FeatureStatistics:
    """Return the statistics of the features of samples that come in batches, holding one at a time.

    Several processes (:func:`gas.processes.together`) share the batches, to the same bits.

    Args:
        features: ``(B, *) -> (B, F)``.
        batches: of samples, the same in every process.

    Raises:
        ValueError: for fewer than two samples, or features that are not finite.

    References:
        Chan, Golub, LeVeque, COMPSTAT 1982, as in :func:`gas.metrics.merge`.
    """
    count, mean, scatter = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for seen in processes.spread(lambda batch: extract(features, batch).to("cpu", torch.float64), batches):
        centre, more = seen.mean(0), len(seen)
        offset, rest = centre - mean, seen - centre
        scatter = scatter + rest.T @ rest + torch.outer(offset, offset) * (count * more / (count + more))
        mean = mean + offset * (more / (count + more))
        count += more
    if count < 2:
        raise ValueError(f"statistics need at least two samples, got {count}")
    return FeatureStatistics(mean, scatter / (count - 1), count)


def save_statistics(
    path: str | Path, statistics: FeatureStatistics, told: Mapping[str, str] | None = None
) -> Path:
    """Write statistics to ``.safetensors``, or to ``.npz`` as ``mu``, ``sigma`` and ``count``.

    Args:
        path: the file; whole or absent.
        statistics: mean, covariance and count.
        told: of which features they are, text by name; safetensors keeps it.

    Raises:
        ValueError: for another kind of file.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.cov.numpy()}
        arrays["count"] = np.array(statistics.count)
        arrays |= {name: np.array(text) for name, text in (told or {}).items()}
        return write_bytes(path, _archive(arrays))
    if path.suffix != ".safetensors":
        raise ValueError(f"statistics go to a .safetensors or .npz file, got {path.name}")
    tensors = {
        "mean": statistics.mean,
        "cov": statistics.cov.contiguous(),
        "count": torch.tensor(statistics.count),
    }
    return write_bytes(path, in_order(save(tensors, dict(told or {}))))


def read_statistics(path: str | Path, told: Mapping[str, str] | None = None) -> FeatureStatistics:
    """Read statistics: ours, EDM's ``.npz`` (``mu``, ``sigma``) or ADM's reference batches (with images beside).

    Args:
        path: the file.
        told: of which features they must be, where the file says of which they are.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged, holds no statistics, or those of other features.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no statistics at {path}")
    found, said = _of_safetensors(path) if path.suffix == ".safetensors" else _of_npz(path)
    _check(path, said, told or {})
    return found


def _check(path: Path, said: Mapping[str, str], told: Mapping[str, str]) -> None:
    """Refuse what says that it is of other features, or of some model's own and not of whose."""
    for name, text in told.items():
        if said.get(name, text) != text:
            more = (
                ", the model's own: make them again with gas statistics --model"
                if "features_of" in told
                else ""
            )
            raise ValueError(
                f"{path} holds statistics of other features: {name} {said[name]}, not {text}{more}"
            )
    if said.get("features") == "model" and "features_of" in told and "features_of" not in said:
        raise ValueError(
            f"{path} holds statistics of a model's own features and does not say whose: make them again with "
            f"gas statistics --model {told['features_of']}"
        )


def has_images(path: str | Path) -> bool:
    """Whether an ``.npz`` has an ``arr_0``, without reading it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged.
    """
    with _archive_of(Path(path)) as archive:
        return "arr_0" in archive


def read_images(path: str | Path) -> Tensor:
    """Read ADM's ``arr_0`` of an ``.npz``, bytes ``(N, H, W, 3)``, as uint8 ``(N, 3, H, W)``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged or holds no such images.
    """
    arrays = _arrays(Path(path), ("arr_0",))
    images = arrays.get("arr_0")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"{path} has no images: arr_0 must be bytes (N, H, W, 3)")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _of_safetensors(path: Path) -> tuple[FeatureStatistics, Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            found = FeatureStatistics(
                file.get_tensor("mean"), file.get_tensor("cov"), int(file.get_tensor("count"))
            )
            return found, file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} holds no statistics, or is damaged: {error}") from error


def _of_npz(path: Path) -> tuple[FeatureStatistics, Mapping[str, str]]:
    arrays = _arrays(path, ("mu", "sigma", "count", *_SAID))
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f"{path} has no statistics mu and sigma: make them of images with `gas statistics`")
    said = {name: str(arrays[name]) for name in _SAID if name in arrays}
    mean, cov = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    try:
        return FeatureStatistics(mean, (cov + cov.T) / 2, int(arrays.get("count", _UNSAID))), said
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An ``.npz`` of these arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read some arrays of an archive; one that would have to be unpickled is refused."""
    with _archive_of(path) as archive:
        return {name: archive[name] for name in names if name in archive}


@contextmanager
def _archive_of(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open an archive whose arrays are read as they are asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            yield archive
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not an .npz of plain arrays, or is damaged: {error}") from error
