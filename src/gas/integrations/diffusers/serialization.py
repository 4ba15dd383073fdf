"""Saving and loading schedulers: configs, solver.json, folders and the hub."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from gas.errors import UserError
from gas.integrations.diffusers.model_card import is_ours, model_card, push
from gas.io import CHECKSUM, read_json, verify_checksum, write_bytes, write_text
from gas.pipelines.process import PREDICTIONS, Process
from gas.pipelines.scheduler_config import config_of, model_keys, translate
from gas.schedule import Flow, VPDiscrete
from gas.solver_file import Artefact, load, parse_document, save

__all__ = [
    "CONFIG",
    "SOLVER",
    "SavedScheduler",
    "SchedulerMixin",
    "SolverFile",
    "config_of_solver",
    "hub_config",
    "hub_solver",
    "local_config",
    "solver_file",
]

try:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils.import_utils import DummyObject
except Exception as error:  # a broken torchvision raises RuntimeError
    raise ImportError(
        f"gas.GASScheduler needs diffusers ({type(error).__name__}: {error}): pip install 'gas-solver[diffusers]'"
    ) from error

# Arguments of from_pretrained that say where on the hub to look.
_HUB_ONLY = {
    "cache_dir",
    "force_download",
    "local_dir",
    "local_files_only",
    "mirror",
    "proxies",
    "revision",
    "token",
}

_HUB_FILE = {"cache_dir", "force_download", "local_files_only", "revision", "token"}

_DEFAULTS = "_use_default_values"  # the key under which diffusers lists what nobody set

# What pipelines read of a scheduler beside its contract, and whose it is.
_INTERNALS = {
    "_get_conditioning_c_in": "EDMEulerScheduler",
    "_get_variance": "DDIMScheduler",
    "_init_step_index": "DPMSolverMultistepScheduler",
    "_is_ode_scheduler": "DDIMParallelScheduler",
    "_sigma_to_alpha_sigma_t": "DPMSolverMultistepScheduler",
    "batch_step_no_noise": "DDIMParallelScheduler",
    "convert_model_output": "DPMSolverMultistepScheduler",
    "dpm_solver_first_order_update": "DPMSolverMultistepScheduler",
    "final_alpha_cumprod": "DDIMScheduler",
    "last_sample": "UniPCMultistepScheduler",
    "lower_order_nums": "DPMSolverMultistepScheduler",
    "model_outputs": "UniPCMultistepScheduler",
    "ori_start_sigmas": "HeliosScheduler",
    "undo_step": "RePaintScheduler",
}

# Arguments of no other scheduler.
_POLICY = {"base", "guidance_scale", "missing_nfe", "schedule", "solver", "strict", "timestep_dtype"}


class SavedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """The half of :class:`gas.GASScheduler` that makes one from a config or file and writes it."""

    # As every VP scheduler there says, with that of flows, less that of EDM: its defaults would pass for an EDM model's
    # levels on the way back.
    _compatibles = [  # noqa: RUF012 (a list, as in every scheduler there)
        *(e.name for e in KarrasDiffusionSchedulers if e.name != "EDMEulerScheduler"),
        "FlowMatchEulerDiscreteScheduler",
    ]

    process: Process
    artefact: Artefact | None
    _converted = False

    @property
    def config(self) -> Any:
        """The config, of which pipelines look at attributes and other schedulers at items.

        The attribute ``use_flow_sigmas`` is false whatever the item says: pipelines like Flux's would drop sigmas
        that their user passed.
        """
        config = super().config
        vars(config)["use_flow_sigmas"] = False
        return config

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler for the model that ``config``, of this or another scheduler, is for.

        Args:
            config: ``pipe.scheduler.config``, or the scheduler itself, whose class is then known for sure.
            return_unused_kwargs: as elsewhere in diffusers.
            **kwargs: any argument of the class, above all ``solver``.

        Raises:
            ValueError: for a scheduler that samples something else than the ODE of a diffusion or flow model.
        """
        config = config_of(config) if isinstance(config, SchedulerMixin) else config
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs, **kwargs)
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        defaults = set(config.get(_DEFAULTS) or [])
        given = {key: value for key, value in config.items() if key not in defaults and key != _DEFAULTS}
        solver = kwargs.get("solver", given.get("solver"))
        if "solver" not in kwargs and isinstance(solver, str) and not isinstance(solver, SolverFile):
            raise UserError(
                f"the config names the solver file {solver!r} and does not hold its numbers: pass solver=..., "
                "or the folder that has both to from_pretrained"
            )
        # What the model is, where the config's class implies it; the next scheduler is to see only what was given.
        implied = {key: value for key, value in model_keys(translate(config)).items() if key in known}
        ours = implied | {key: value for key, value in given.items() if key in known}
        loaded: Any = super().from_config(ours, return_unused_kwargs, **kwargs)
        scheduler = loaded[0] if return_unused_kwargs else loaded
        passed_on = {key: value for key, value in given.items() if key not in known}
        if "_class_name" in given:
            passed_on["_class_name"] = cls.__name__
        elif not _POLICY & (set(given) | set(kwargs)):  # a config that was never saved names no class
            bare = {key: value for key, value in scheduler._internal_dict.items() if key != "_class_name"}
            scheduler._internal_dict = type(scheduler._internal_dict)(bare)
        scheduler.register_to_config(**passed_on)
        if left := known - set(given) - set(kwargs):
            scheduler.register_to_config(**{_DEFAULTS: left})
        scheduler._converted = True
        return (scheduler, loaded[1] | passed_on) if return_unused_kwargs else scheduler

    def __getattr__(self, name: str) -> Any:
        """Fail with the reason where a pipeline reaches for what only one of diffusers' own schedulers has."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in _INTERNALS:
                raise
            raise AttributeError(
                f"{error}: this pipeline works with the inside of {_INTERNALS[name]}, "
                "keep that scheduler in it"
            ) from None

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """The compatible classes that are installed: one of them needs another package."""
        return [cls for cls in super()._get_compatibles() if not isinstance(cls, DummyObject)]

    def register_to_config(self, **kwargs: Any) -> None:
        """Set keys of the config.

        It names its class from the start: another scheduler then drops what only this one has without a warning. The
        names of the keys left at their defaults are sorted, so that equal configs compare equal.
        """
        if _DEFAULTS in kwargs:
            kwargs[_DEFAULTS] = sorted(kwargs[_DEFAULTS])
        if not hasattr(self, "_internal_dict"):
            kwargs["_class_name"] = type(self).__name__
        super().register_to_config(**kwargs)  # type: ignore[no-untyped-call]

    def to_json_string(self) -> str:
        """Return the config as ``scheduler_config.json`` has it.

        Of a scheduler that was made from another's config, the file also says which keys that one left at their
        defaults: the next scheduler then takes its own.
        """
        text: str = super().to_json_string()
        defaults = self.config.get(_DEFAULTS)
        if not self._converted or not defaults:
            return text
        return json.dumps(json.loads(text) | {_DEFAULTS: defaults}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a scheduler's folder, a solver file (``.json``), or a repository on the hub.

        A folder or repository that holds a solver file (``solver.json``; in a folder the only one, whatever its name)
        and no ``scheduler_config.json`` will do, where the file says what model it is for.

        Args:
            pretrained_model_name_or_path: where it is; a local one is read without asking anything of a network.
            subfolder: of a pipeline's folder, usually ``"scheduler"``.
            return_unused_kwargs: as elsewhere in diffusers.
            **kwargs: any argument of the class, to replace what was saved; or where to look on the hub.

        Raises:
            FileNotFoundError: when there is nothing there.
            ValueError: when a file is damaged, or a solver file does not say what model it is for.
        """
        path = pretrained_model_name_or_path
        if path is None:
            raise UserError("pass the scheduler's folder, a solver file or owner/name on the hub, got None")
        config = local_config(path, subfolder)
        if config is None:
            where = {key: value for key, value in kwargs.items() if key in _HUB_FILE}
            try:
                config = cast("dict[str, Any]", cls.load_config(path, subfolder=subfolder, **where))
            except OSError:  # how diffusers says that there is no config
                config = hub_solver(str(path), subfolder, **where)
                if config is None:
                    raise
            if "solver" not in kwargs:
                config = hub_config(config, str(path), subfolder, **where)
        given = {key: value for key, value in kwargs.items() if key not in _HUB_ONLY}
        return cls.from_config(config, return_unused_kwargs, **given)

    def save_config(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``scheduler_config.json`` and the solver that it names: :meth:`save_pretrained` less the card."""
        folder = Path(save_directory)
        write_text(folder / CONFIG, self.to_json_string())
        if self.artefact is not None:
            self.artefact.write(folder / SOLVER)
        if push_to_hub:
            push(folder, kwargs.pop("repo_id", folder.name), **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        base_model: str | None = None,
        picture: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``scheduler_config.json``, the solver by itself as ``solver.json``, and a model card ``README.md``.

        Args:
            save_directory: a folder, made if there is none.
            push_to_hub: whether to upload it too; ``kwargs`` are then those of :meth:`push_to_hub`.
            base_model: name of the model that the solver is for.
            picture: a picture file to show in the card.
            **kwargs: ``repo_id``, by default the folder's name, and the rest.
        """
        folder = Path(save_directory)
        self.save_config(folder)
        if picture is not None:
            write_bytes(folder / Path(picture).name, Path(picture).read_bytes())
        shown = None if picture is None else Path(picture).name
        name = kwargs.get("repo_id") or folder.name
        card = model_card(
            self.process, self.artefact, base_model=base_model, picture=shown, name=name, config=self.config
        )
        if is_ours(folder / "README.md"):
            write_text(folder / "README.md", card)
        if push_to_hub:
            push(folder, kwargs.pop("repo_id", folder.name), **kwargs)

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
        """Upload what :meth:`save_pretrained` writes; return the address of the commit.

        Args:
            repo_id: ``owner/name``; made if there is none.
            commit_message, private, token, create_pr, subfolder: as elsewhere in diffusers.
            safe_serialization, variant: of weights, which a scheduler has none of.
            base_model: name of the model that the solver is for.
            picture: a picture file to show in the card.

        Raises:
            ConnectionError: when the hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, base_model=base_model, picture=picture, repo_id=repo_id)
            return push(
                Path(folder),
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
                subfolder=subfolder,
            )


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
        raise UserError(
            f"{place} is not valid JSON ({error}): a download that was cut off is mended by downloading again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{place} holds a {type(content).__name__}, not a scheduler's config or a solver")
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
    raise UserError(
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


SOLVER = "solver.json"


class SolverFile(str):
    """The name of the solver file beside a scheduler's config, with the solver itself.

    A plain string to JSON, ``==`` and ``repr``, so that a config stays short; conversion to another scheduler and back,
    copies and pickles take the solver along.
    """

    artefact: Artefact


def solver_file(solver: Any) -> SolverFile:
    """Return what a scheduler's config holds of a solver.

    Args:
        solver: a path to a solver file, what such a file holds, an artefact, or what :func:`gas.save` takes: a table,
            a solver module, or several of different NFE.

    Raises:
        ValueError: when it is none of these or damaged.
    """
    if isinstance(solver, SolverFile):
        return solver
    name = SolverFile(SOLVER)
    if isinstance(solver, Mapping) and "format" in solver:
        name.artefact = _read(solver)
    elif isinstance(solver, (str, Path)):
        name.artefact = load(solver)
    else:
        name.artefact = solver if isinstance(solver, Artefact) else save(None, solver)
    return name


def _read(told: Mapping[str, Any]) -> Artefact:
    content, name = dict(told), "the scheduler's solver"
    if CHECKSUM in content:  # as a file has it; a config has none
        content = verify_checksum(content, name)
    return Artefact(parse_document(content, "the solver in the scheduler's config is damaged"), name)
