"""What of a scheduler has to do with configs, files and the hub."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gas.artefact import Artefact
from gas.files import write_bytes, write_text
from gas.integrations.diffusers.card import is_ours, model_card
from gas.integrations.diffusers.classes import config_of
from gas.integrations.diffusers.config import translated
from gas.integrations.diffusers.hub import push
from gas.integrations.diffusers.pretrained import CONFIG, SOLVER, hub_solver, local_config
from gas.integrations.diffusers.process import Process
from gas.io import sealed

try:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
except Exception as error:  # a broken torchvision raises RuntimeError
    raise ImportError(
        f"gas.GASScheduler needs diffusers ({type(error).__name__}: {error}): pip install 'gas-solver[diffusers]'"
    ) from error

__all__ = ["SavedScheduler", "SchedulerMixin"]

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


class SavedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """The half of :class:`gas.GASScheduler` that makes one from a config or file and writes it."""

    _compatibles = [  # noqa: RUF012 (a list, as in every scheduler there)
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverSDEScheduler",
        "EDMEulerScheduler",
    ]

    process: Process
    artefact: Artefact | None

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
        said = translated(config) if isinstance(config, Mapping) else {}
        known = inspect.signature(cls.__init__).parameters
        ours = {key: value for key, value in said.items() if key in known}
        made: Any = super().from_config(ours or config, return_unused_kwargs, **kwargs)
        kept = {key: value for key, value in said.items() if key not in known and not key.startswith("_")}
        scheduler = made[0] if return_unused_kwargs else made
        scheduler.register_to_config(**kept)  # so that the next scheduler finds what it said
        return made

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
        config = None if path is None else local_config(path, subfolder)
        if config is None:
            try:
                return super().from_pretrained(path, subfolder, return_unused_kwargs, **kwargs)
            except OSError:  # how diffusers says that there is no config
                where = {key: value for key, value in kwargs.items() if key in _HUB_FILE}
                config = None if path is None else hub_solver(str(path), subfolder, **where)
                if config is None:
                    raise
        given = {key: value for key, value in kwargs.items() if key not in _HUB_ONLY}
        return cls.from_config(config, return_unused_kwargs, **given)

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
        write_text(folder / CONFIG, self.to_json_string())
        if self.artefact is not None:
            write_text(folder / SOLVER, json.dumps(sealed(self.config["solver"])))
        if picture is not None:
            write_bytes(folder / Path(picture).name, Path(picture).read_bytes())
        shown = None if picture is None else Path(picture).name
        name = kwargs.get("repo_id") or folder.name
        card = model_card(self.process, self.artefact, base_model=base_model, picture=shown, name=name)
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
