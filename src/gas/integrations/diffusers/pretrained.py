"""Schedulers and solver files on disk: reading either as a scheduler's config, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gas.artefact import Artefact, load
from gas.integrations.diffusers.process import PREDICTIONS
from gas.integrations.diffusers.solver_config import SOLVER, SolverFile, solver_file
from gas.io import read_json
from gas.schedule import Flow, VPDiscrete

__all__ = ["CONFIG", "config_of_solver", "hub_config", "hub_solver", "local_config"]

CONFIG = "scheduler_config.json"


def local_config(path: str | os.PathLike[str], subfolder: str | None = None) -> dict[str, Any] | None:
    """Return the scheduler's config that a file or folder holds, or ``None`` for what may be a name on the hub.

    Args:
        path: a scheduler's or solver's folder, a ``scheduler_config.json``, or a solver file.
        subfolder: of a pipeline's folder, usually ``"scheduler"``.

    Raises:
        FileNotFoundError: when it is meant as a path and there is nothing, or a folder lacks its file.
        ValueError: when a file is damaged or half downloaded, or a solver file does not say what it is for.
    """
    place = Path(path)
    if place.is_dir():
        inside = [folder / name for folder in _folders(place, subfolder) for name in (CONFIG, SOLVER)]
        found = next((file for file in inside if file.is_file()), None) or _only_solver(place)
        if found is None:
            raise FileNotFoundError(
                f"{place} holds neither {CONFIG} nor {SOLVER} ({_listing(place)}): "
                "a download that was cut off is mended by downloading again"
            )
        place = found
    elif not place.is_file():
        if place.suffix or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1:
            raise FileNotFoundError(f"there is no solver file or folder {path}")
        return None
    try:
        content = read_json(place, finite=False)
    except ValueError as error:
        raise ValueError(
            f"{place} is not valid JSON ({error}): a download that was cut off is mended by downloading again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} holds a {type(content).__name__}, not a scheduler's config or a solver")
    if content.get("format") == "gas-solver":
        return config_of_solver(load(place))
    return content | {"solver": _beside(place, content["solver"])} if _names_file(content) else content


def hub_config(
    config: dict[str, Any], repo_id: str, subfolder: str | None = None, **where: Any
) -> dict[str, Any]:
    """Return a config that was downloaded, with the solver file that it names.

    Args:
        config: what the repository's ``scheduler_config.json`` holds.
        repo_id, subfolder, where: as in :func:`hub_solver`.

    Raises:
        FileNotFoundError: when the config names a solver file and the repository has none.
    """
    if not _names_file(config):
        return config
    path = _download(repo_id, subfolder, **where)
    if path is None:
        raise FileNotFoundError(f"{CONFIG} of {repo_id} names {SOLVER}, which is not there: pass solver=...")
    return config | {"solver": solver_file(path)}


def _names_file(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("solver"), str) and not isinstance(config["solver"], SolverFile)


def _beside(place: Path, name: str) -> SolverFile | str:
    """The solver file beside a config; its name alone where there is none, for ``solver=`` may replace it."""
    return solver_file(place.with_name(SOLVER)) if place.with_name(SOLVER).is_file() else name


def hub_solver(repo_id: str, subfolder: str | None = None, **where: Any) -> dict[str, Any] | None:
    """Return the scheduler's config that a repository's solver file means; ``None`` where it has none.

    Args:
        repo_id: ``owner/name``.
        subfolder: looked into first.
        where: ``cache_dir``, ``revision``, ``token``, ``local_files_only`` and ``force_download`` of the hub.

    Raises:
        ValueError: when the file is damaged, or does not say what it is for.
    """
    path = _download(repo_id, subfolder, **where)
    return None if path is None else local_config(path)


def _download(repo_id: str, subfolder: str | None, **where: Any) -> str | None:
    import huggingface_hub

    for name in [SOLVER] if subfolder is None else [f"{subfolder}/{SOLVER}", SOLVER]:
        try:
            return str(huggingface_hub.hf_hub_download(repo_id, name, **where))
        except Exception:  # no such file, no such repository, no network: what was asked for first says which
            continue
    return None


def config_of_solver(artefact: Artefact) -> dict[str, Any]:
    """Return the config of a scheduler for the model that a solver file names.

    Raises:
        ValueError: when the file does not say enough of that model.
    """
    schedule = artefact.schedule
    prediction = (artefact.document.model or {}).get("prediction")
    config: dict[str, Any] = {"_class_name": "GASScheduler", "solver": solver_file(artefact)}
    if isinstance(schedule, Flow):
        shift = (artefact.document.model or {}).get("shift")  # what it was learned at
        config |= {} if shift is None else {"shift": float(shift)}
        return config | {"prediction_type": "flow_prediction"}
    if isinstance(schedule, VPDiscrete) and prediction in PREDICTIONS and not _karras(schedule):
        alphas = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        return config | {
            "prediction_type": prediction,
            "trained_betas": (1 - alphas / before).tolist(),
            "num_train_timesteps": schedule.steps,
        }
    raise ValueError(
        f"{artefact.source} does not say how its model is told the time and what it predicts: use "
        "GASScheduler.from_config(pipe.scheduler.config, solver=...) with the pipeline that it is for"
    )


def _karras(schedule: VPDiscrete) -> bool:
    """Whether the levels are the ladder that stands for an EDM model, which is told levels and not steps."""
    alphas = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    rungs = (1 / alphas - 1) ** (1 / 14)
    return bool(rungs.diff().diff().abs().max() < 1e-6 * rungs.max())


def _only_solver(place: Path) -> Path | None:
    """The folder's solver file of another name, if there is just one."""
    found = []
    for file in sorted(place.glob("*.json")):
        try:
            content = read_json(file, finite=False)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("format") == "gas-solver":
            found.append(file)
    return found[0] if len(found) == 1 else None


def _folders(place: Path, subfolder: str | None) -> list[Path]:
    return [place] if subfolder is None else [place / subfolder, place]


def _listing(place: Path) -> str:
    names = sorted(file.name for file in place.iterdir())
    return f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
