"""Published time grids, each for one model, as lists of noise levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gas.errors import UserError
from gas.schedule import Schedule, check_t_end

# Last level for a grid that ends without noise, which has no logarithm to interpolate.
_LAST = 1e-3


@dataclass(frozen=True)
class Levels:
    """A published grid, called as every grid is: ``(schedule, nfe, t_end) -> (nfe + 1,)`` times from 1 to ``t_end``.

    A level is ``sigma_t / alpha_t``, for a flow ``sigma_t``, which is its time. The last time is ``t_end``.
    """

    model: str  # name of the model it was published for
    lists: Mapping[int, Sequence[float]]  # by NFE, one level for each network evaluation, noisiest first
    between: bool = False  # interpolate other NFE, linearly in the logarithm of the levels, as the authors do
    flow: bool = False  # whether the model is a rectified flow

    def __call__(self, schedule: Schedule, nfe: int, t_end: float) -> Tensor:
        self._check(schedule)
        check_t_end(schedule, t_end)
        levels = self.lists.get(nfe)
        if levels is None:
            if not self.between or nfe < 1:
                known = ", ".join(map(str, self.lists))
                raise UserError(f"the grid for {self.model} is published for NFE {known}, got NFE {nfe}")
            (listed,) = self.lists.values()
            logs = np.log([*listed, self._level(schedule, t_end) or _LAST])
            share = np.linspace(0, 1, nfe + 1)[:-1]
            levels = np.exp(np.interp(share, np.linspace(0, 1, len(logs)), logs)).tolist()
        inner = torch.tensor(levels[1:], dtype=torch.float64)
        if not self.flow:
            inner = schedule.inverse_half_log_snr(-inner.log())
        return torch.cat([inner.new_ones(1), inner, inner.new_tensor([t_end])])

    def _level(self, schedule: Schedule, t: float) -> float:
        alpha, sigma = schedule(t)
        return float(sigma if self.flow else sigma / alpha)

    def _check(self, schedule: Schedule) -> None:
        """Refuse a schedule of another noise range."""
        first = next(iter(self.lists.values()))[0]
        is_flow = float(schedule(1.0)[0]) == 0
        if is_flow != self.flow or (not is_flow and abs(self._level(schedule, 1.0) / first - 1) > 0.01):
            wanted = "a rectified flow" if self.flow else f"noise from sigma/alpha = {first:g}"
            raise UserError(f"the grid for {self.model} needs {wanted}, got {schedule}")


# fmt: off
_WAN = (
    1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975,
    0.973, 0.968, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208,
)
# fmt: on
_SD15, _SDXL, _SVD = "Stable Diffusion 1.5", "Stable Diffusion XL", "Stable Video Diffusion"

PUBLISHED: dict[str, Levels] = {
    # Align Your Steps (arXiv 2404.14507), as diffusers prints them in AysSchedules.
    "ays-sd15": Levels(
        _SD15, {10: [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]}, between=True
    ),
    "ays-sdxl": Levels(
        _SDXL, {10: [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113]}, between=True
    ),
    "ays-svd": Levels(
        _SVD, {10: [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034]}, between=True
    ),
    # GITS (arXiv 2405.11326), as arXiv 2510.17699 gives them for its teachers.
    "gits-sd15": Levels(
        _SD15,
        {
            5: [14.6146, 4.39, 1.5286, 0.6526, 0.2667],
            6: [14.6146, 4.7242, 1.9132, 0.9324, 0.4557, 0.1801],
            7: [14.6146, 6.4477, 2.2797, 1.1629, 0.6114, 0.3058, 0.1258],
            8: [14.6146, 6.4477, 2.7391, 1.4467, 0.8319, 0.4936, 0.2667, 0.1258],
        },
    ),
    # Optimal Stepsize (arXiv 2503.21774), as ComfyUI prints them in its OptimalStepsScheduler.
    "oss-flux": Levels(
        "FLUX",
        {10: [0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808]},
        between=True,
        flow=True,
    ),
    "oss-wan": Levels("Wan", {20: _WAN}, between=True, flow=True),
}
