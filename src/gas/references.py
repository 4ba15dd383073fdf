"""BibTeX of the library and of the methods that it implements."""

from __future__ import annotations

from pathlib import Path

from gas.solver_file import Artefact, load

__all__ = ["citation"]

_LIBRARY = """@software{gas_solver,
  title   = {gas-solver: learned few-step samplers for pretrained diffusion and flow models},
  author  = {{The gas-solver contributors}},
  year    = {2026},
  version = {VERSION}
}"""
_PAPER = """@misc{oganov2025gas,
  title         = {{GAS}: Improving Discretization of Diffusion {ODE}s via Generalized Adversarial Solver},
  author        = {Oganov, Aleksandr and Bykov, Ilya and Neudachina, Eva and Aliev, Mishan and Tolmachev, Alexander
                   and Sidorov, Alexander and Zuev, Aleksandr and Okhotin, Andrey and Rakitin, Denis
                   and Alanov, Aibek},
  year          = {2025},
  eprint        = {2510.17699},
  archivePrefix = {arXiv}
}"""
# Papers of the other learned solvers, by the kind in a solver file.
_METHODS = {
    "LD3": """@inproceedings{tong2025ld3,
  title         = {Learning to Discretize Denoising Diffusion {ODE}s},
  author        = {Tong, Vinh and Hoang, Trung-Dung and Liu, Anji and Van den Broeck, Guy and Niepert, Mathias},
  booktitle     = {International Conference on Learning Representations},
  year          = {2025},
  eprint        = {2405.15506},
  archivePrefix = {arXiv}
}""",
    "S4S": """@inproceedings{frankel2025s4s,
  title         = {{S4S}: Solving for a Fast Diffusion Model Solver},
  author        = {Frankel, Eric and Chen, Sitan and Li, Jerry and Koh, Pang Wei and Ratliff, Lillian J.
                   and Oh, Sewoong},
  booktitle     = {International Conference on Machine Learning},
  year          = {2025},
  eprint        = {2502.17423},
  archivePrefix = {arXiv}
}""",
    "BNS": """@inproceedings{shaul2024bns,
  title         = {Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models},
  author        = {Shaul, Neta and Singer, Uriel and Chen, Ricky T. Q. and Le, Matthew and Thabet, Ali
                   and Pumarola, Albert and Lipman, Yaron},
  booktitle     = {International Conference on Machine Learning},
  year          = {2024},
  eprint        = {2403.01329},
  archivePrefix = {arXiv}
}""",
}


def citation(solver: str | Path | Artefact | None = None) -> str:
    """Return the BibTeX entries of this library, of GAS, and of the method of a solver file.

    Args:
        solver: a solver file or its path. LD3, S4S and BNS solvers add the entry of their paper; Generalized Solvers
            and classical tables add none.

    Raises:
        FileNotFoundError, ValueError: as :func:`gas.load`.

    >>> print(citation().splitlines()[0])
    @software{gas_solver,
    """
    from gas import __version__

    entries = [_LIBRARY.replace("VERSION", __version__), _PAPER]
    if solver is not None:
        artefact = solver if isinstance(solver, Artefact) else load(solver)
        kinds = {entry.kind for entry in artefact.document.solvers}
        entries += [text for kind, text in _METHODS.items() if kind in kinds]
    return "\n\n".join(entries) + "\n"
