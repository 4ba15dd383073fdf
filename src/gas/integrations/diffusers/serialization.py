"""Saving and loading schedulers: configs, solver.json, folders and the hub."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from gas.errors import UserError, requires
from gas.integrations.diffusers.model_card import may_overwrite, model_card
from gas.io import CHECKSUM, read_json, verify_checksum, write_bytes, write_text
from gas.pipelines.process import PREDICTIONS, Process, alpha_ratios
from gas.pipelines.scheduler_config import DEFAULTS, config_of, model_keys
from gas.schedule import Flow, VPDiscrete
from gas.solver_file import Artefact, load, save
from gas.solver_schema import parse_document

__all__ = ["SavedScheduler", "SchedulerMixin", "SolverFile", "solver_file"]

with requires("diffusers", "gas.GASScheduler needs diffusers"):
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils.import_utils import DummyObject

CONFIG = "scheduler_config.json"
SOLVER = "solver.json"

# Arguments of from_pretrained that locate a file on the hub: for the solver file, and all.
_HUB_FILE = {"cache_dir", "force_download", "local_files_only", "revision", "token"}
_HUB = _HUB_FILE | {"local_dir", "mirror", "proxies"}

# Arguments that no other scheduler has.
_OUR_ARGUMENTS = {"base", "guidance_scale", "missing_nfe", "schedule", "solver", "strict", "timestep_dtype"}


class SavedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """The part of :class:`gas.GASScheduler` that loads and saves it."""

    # As in diffusers' VP schedulers, plus the flow one, minus the EDM one, whose defaults would be taken for an EDM
    # model's levels on the way back.
    _compatibles = [  # noqa: RUF012 (a list, as in diffusers)
        *(e.name for e in KarrasDiffusionSchedulers if e.name != "EDMEulerScheduler"),
        "FlowMatchEulerDiscreteScheduler",
    ]

    process: Process
    artefact: Artefact | None
    _is_converted = False

    @property
    def config(self) -> Any:
        """The config, whose attributes pipelines read, and whose items other schedulers.

        The attribute ``use_flow_sigmas`` is false whatever the item is: pipelines like Flux's would drop the user's
        sigmas otherwise.
        """
        config = super().config
        vars(config)["use_flow_sigmas"] = False
        return config

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler for the model of ``config``, that of any scheduler.

        Args:
            config: ``pipe.scheduler.config``, or the scheduler itself, whose class is then known for sure.
            **kwargs: any argument of the class, above all ``solver``.

        Raises:
            ValueError: for a scheduler that samples something else than the ODE of a diffusion or flow model.
        """
        config = config_of(config) if isinstance(config, SchedulerMixin) else config
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs, **kwargs)
        arguments = set(inspect.signature(cls.__init__).parameters) - {"self"}
        defaults = {*(config.get(DEFAULTS) or []), DEFAULTS}
        explicit = {key: value for key, value in config.items() if key not in defaults}
        solver = kwargs.get("solver", explicit.get("solver"))
        if "solver" not in kwargs and isinstance(solver, str) and not isinstance(solver, SolverFile):
            raise UserError(
                f"the config names the solver file {solver!r} and does not hold its numbers: pass solver=..., "
                "or the folder that has both to from_pretrained"
            )
        # With the model that the config's class implies. The next scheduler must see only the explicit keys.
        ours = {key: value for key, value in (model_keys(config) | explicit).items() if key in arguments}
        loaded: Any = super().from_config(ours, return_unused_kwargs, **kwargs)
        scheduler = loaded[0] if return_unused_kwargs else loaded
        passed_on = {key: value for key, value in explicit.items() if key not in arguments}
        if "_class_name" in explicit:
            passed_on["_class_name"] = cls.__name__
        elif not _OUR_ARGUMENTS & {*explicit, *kwargs}:  # a config that was never saved names no class
            bare = {key: value for key, value in scheduler._internal_dict.items() if key != "_class_name"}
            scheduler._internal_dict = type(scheduler._internal_dict)(bare)
        scheduler.register_to_config(**passed_on)
        if left := arguments - {*explicit, *kwargs}:
            scheduler.register_to_config(**{DEFAULTS: left})
        scheduler._is_converted = True
        return (scheduler, loaded[1] | passed_on) if return_unused_kwargs else scheduler

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(
                f"{error}: a pipeline that uses it needs the scheduler that it came with"
            ) from None

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """The compatible classes that are installed; one of them needs another package."""
        return [cls for cls in super()._get_compatibles() if not isinstance(cls, DummyObject)]

    def register_to_config(self, **kwargs: Any) -> None:
        if DEFAULTS in kwargs:  # a set: sorted, equal configs compare equal
            kwargs[DEFAULTS] = sorted(kwargs[DEFAULTS])
        if not hasattr(self, "_internal_dict"):
            # Named from the start, so that another scheduler drops our own keys without a warning.
            kwargs["_class_name"] = type(self).__name__
        super().register_to_config(**kwargs)  # type: ignore[no-untyped-call]

    def to_json_string(self) -> str:
        text: str = super().to_json_string()
        defaults = self.config.get(DEFAULTS)
        if not self._is_converted or not defaults:
            return text
        # The scheduler that is made of a converted config takes its own defaults for these.
        return json.dumps(json.loads(text) | {DEFAULTS: defaults}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a scheduler's folder, a solver file (``.json``), or a repository on the hub.

        Without ``scheduler_config.json`` it needs a solver file, ``solver.json`` or the only one, that names its model.

        Args:
            pretrained_model_name_or_path: the folder, file or repository.
            subfolder: of a pipeline's folder, usually ``"scheduler"``.
            **kwargs: any argument of the class, to replace a saved one; or to locate the repository's files.

        Raises:
            FileNotFoundError: when nothing is found.
            ValueError: when a file is damaged, or a solver file does not name its model.
        """
        path = pretrained_model_name_or_path
        if path is None:
            raise UserError("pass the scheduler's folder, a solver file or owner/name on the hub, got None")
        config = _local_config(path, subfolder)
        if config is None:
            location = {key: value for key, value in kwargs.items() if key in _HUB_FILE}
            try:
                config = cast("dict[str, Any]", cls.load_config(path, subfolder=subfolder, **location))
            except OSError:  # raised by diffusers when there is no config
                solver = _download_solver(str(path), subfolder, **location)
                if solver is None:
                    raise
                config = cast("dict[str, Any]", _local_config(solver, None))
            if "solver" not in kwargs and _names_file(config):
                solver = _download_solver(str(path), subfolder, **location)
                if solver is None:
                    raise FileNotFoundError(f"{CONFIG} of {path} names a missing {SOLVER}: pass solver=...")
                config |= {"solver": solver_file(solver)}
        arguments = {key: value for key, value in kwargs.items() if key not in _HUB}
        return cls.from_config(config, return_unused_kwargs, **arguments)

    def save_config(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``scheduler_config.json`` and ``solver.json``: :meth:`save_pretrained` without the card."""
        folder = Path(save_directory)
        write_text(folder / CONFIG, self.to_json_string())
        if self.artefact is not None:
            self.artefact.write(folder / SOLVER)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        base_model: str | None = None,
        picture: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``scheduler_config.json``, the solver as ``solver.json``, and a model card ``README.md``.

        Args:
            save_directory: a folder, created if missing.
            push_to_hub: upload it too; ``kwargs`` are then those of :meth:`push_to_hub`.
            base_model: name of the solver's model.
            picture: a picture file to show in the card.
            **kwargs: ``repo_id``, default the folder's name, and the rest.
        """
        folder = Path(save_directory)
        self.save_config(folder)
        if picture is not None:
            picture = Path(picture)
            write_bytes(folder / picture.name, picture.read_bytes())
        if may_overwrite(folder / "README.md"):
            card = model_card(
                self.process,
                self.artefact,
                base_model=base_model,
                picture=None if picture is None else picture.name,
                name=kwargs.get("repo_id") or folder.name,
                config=self.config,
            )
            write_text(folder / "README.md", card)
        if push_to_hub:
            kwargs = {"repo_id": folder.name, **kwargs}
            self.push_to_hub(**kwargs, base_model=base_model, picture=picture)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        base_model: str | None = None,
        picture: str | os.PathLike[str] | None = None,
    ) -> str:
        """Upload the files of :meth:`save_pretrained`; return the URL of the commit.

        Arguments are those of diffusers; ``safe_serialization`` and ``variant`` are for weights alone.

        Raises:
            ConnectionError: when the hub cannot be reached or refuses.
        """
        import huggingface_hub

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.save_pretrained(folder, base_model=base_model, picture=picture, repo_id=repo_id)
            try:
                repo = huggingface_hub.create_repo(
                    repo_id, private=private, token=token, exist_ok=True
                ).repo_id
                commit = huggingface_hub.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    token=token,
                    commit_message=commit_message or "Upload scheduler",
                    create_pr=create_pr,
                    path_in_repo=subfolder,
                )
            except Exception as error:  # of requests, httpx or the hub, by its version
                reason = str(error).partition("\n")[0]
                raise ConnectionError(
                    f"could not push to {repo_id} ({type(error).__name__}: {reason}): "
                    "log in with `hf auth login`, or save_pretrained to a folder and upload it later"
                ) from error
        return str(commit)


# --- local files ----------------------------------------------------------------------------------------


def _local_config(path: str | os.PathLike[str], subfolder: str | None) -> dict[str, Any] | None:
    """The config of a scheduler's or solver's folder or file, or ``None`` for what may be a name on the hub."""
    file = Path(path)
    if file.is_dir():
        file = _file_in(file, file if subfolder is None else file / subfolder)
    elif not file.is_file():
        if file.suffix or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1:
            raise FileNotFoundError(f"there is no solver file or folder {path}")
        return None
    try:
        content = read_json(file, finite=False)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): try downloading again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a scheduler's config or a solver")
    if content.get("format") == "gas-solver":
        return _config_of_solver(load(file))
    beside = file.with_name(SOLVER)
    if _names_file(content) and beside.is_file():  # without it, solver= may still be passed
        content["solver"] = solver_file(beside)
    return content


def _file_in(folder: Path, first: Path) -> Path:
    """The config or solver file of a folder, in its subfolder ``first`` before others; else its only solver file."""
    for file in (each / name for each in (first, folder) for name in (CONFIG, SOLVER)):
        if file.is_file():
            return file
    solvers = [file for file in sorted(folder.glob("*.json")) if _is_solver(file)]
    if len(solvers) == 1:
        return solvers[0]
    names = sorted(file.name for file in folder.iterdir())
    listing = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
    raise FileNotFoundError(
        f"{folder} holds neither {CONFIG} nor {SOLVER} ({listing}): "
        "a download that was cut off is mended by downloading again"
    )


def _is_solver(file: Path) -> bool:
    try:
        content = read_json(file, finite=False)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == "gas-solver"


# --- the hub --------------------------------------------------------------------------------------------


def _download_solver(repo_id: str, subfolder: str | None, **location: Any) -> str | None:
    """The path of a repository's solver file, of its subfolder first; ``None`` without one."""
    import huggingface_hub

    for name in [SOLVER] if subfolder is None else [f"{subfolder}/{SOLVER}", SOLVER]:
        try:
            path = str(huggingface_hub.hf_hub_download(repo_id, name, **location))
        except Exception:  # no such file, repository or network: the error of the config says which
            continue
        with contextlib.suppress(Exception):  # the reader of the file says what is damaged or missing
            weights = parse_document(read_json(path), name).weights
            if weights is not None:
                beside = (Path(name).parent / weights.file).as_posix()
                huggingface_hub.hf_hub_download(repo_id, beside, **location)
        return path
    return None


# --- solvers in configs ---------------------------------------------------------------------------------


class SolverFile(str):
    """The name of the solver file beside a scheduler's config, with the solver itself.

    A plain string to JSON, ``==`` and ``repr``, so that configs stay short; conversions to another scheduler and back,
    copies and pickles keep the solver.
    """

    artefact: Artefact


def solver_file(solver: Any) -> SolverFile:
    """Return the entry of a scheduler's config for a solver.

    It is a path to a solver file, the content of one, an artefact, or what :func:`gas.save` takes: a table, a solver
    module, or several of different NFE.

    Raises:
        ValueError: for anything else, or a damaged file.
    """
    if isinstance(solver, SolverFile):
        return solver
    name = SolverFile(SOLVER)
    if isinstance(solver, Mapping) and "format" in solver:
        if CHECKSUM in solver:  # in a file; a config has none
            verify_checksum(solver, "the scheduler's solver")
        document = parse_document(solver, "the solver in the scheduler's config is damaged")
        if document.weights is not None:
            raise UserError(
                "a solver with residuals has a second file: pass the path of its .json, not its content"
            )
        name.artefact = Artefact(document, "the scheduler's solver")
    elif isinstance(solver, (str, Path)):
        name.artefact = load(solver)
    else:
        name.artefact = solver if isinstance(solver, Artefact) else save(None, solver)
    return name


def _names_file(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("solver"), str) and not isinstance(config["solver"], SolverFile)


def _config_of_solver(artefact: Artefact) -> dict[str, Any]:
    schedule, model = artefact.schedule, artefact.document.model or {}
    config: dict[str, Any] = {"_class_name": "GASScheduler", "solver": solver_file(artefact)}
    if isinstance(schedule, Flow):
        shift = {"shift": float(model["shift"])} if model.get("shift") is not None else {}
        return {**config, **shift, "prediction_type": "flow_prediction"}
    if isinstance(schedule, VPDiscrete) and model.get("prediction") in PREDICTIONS and not _is_edm(schedule):
        return {
            **config,
            "prediction_type": model["prediction"],
            "trained_betas": (1 - alpha_ratios(schedule)).tolist(),
            "num_train_timesteps": schedule.steps,
        }
    raise UserError(
        f"{artefact.source} does not say which time its network takes and what it predicts: use "
        "GASScheduler.from_config(pipe.scheduler.config, solver=...) with the pipeline that it is for"
    )


def _is_edm(schedule: VPDiscrete) -> bool:
    """Whether the levels are Karras's, which stand for an EDM model: its network takes levels, not steps."""
    alphas = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    roots = (1 / alphas - 1) ** (1 / 14)  # sigma^(1/7), evenly spaced
    return bool(roots.diff().diff().abs().max() < 1e-6 * roots.max())
