"""A solver file needs no library: this samples from one with numpy alone.

Run ``python numpy_sampler.py digits.json`` on any file of ``gas.save``. A solver with "branches" calls
``denoise(x, t, branch)``, one forward pass. One with "residuals" calls ``correct(row, history)``: the residual of the
row, as ``gas export --residual`` writes it, of the arrays in ``history``. A file of a range of guidance scales runs its
own "guidance" here: "terms" are not read (``gas.load(path).at(scale).write(...)`` makes the file of another scale).
"""

import json
import sys

import numpy as np


def sample(denoise, x, solver, correct=None):
    """Run one entry of the file's "solvers" from noise ``x``; ``denoise(x, t)`` predicts clean data."""
    residuals = {each["row"]: each["config"] for each in solver.get("residuals") or []}

    def lifted(x, row, xs, ds):
        if row not in residuals:
            return x
        if correct is None:
            raise ValueError("this solver has residuals: pass correct(row, history)")
        reads = residuals[row]
        return x + correct(row, xs[: reads["states"]] + ds[len(ds) - reads["outputs"] :])

    xs, ds, branches = [lifted(x, -1, [x], [])], [], solver.get("branches") or []
    for n, t in enumerate(solver["times"]):
        # Copies: the denoiser may overwrite its input, and its next prediction this one.
        ds.append(np.array(denoise(xs[-1].copy(), t, *branches[n : n + 1])))
        terms = zip(solver["states"][n] + solver["outputs"][n], xs + ds, strict=True)
        # Terms of weight zero are skipped: 0 times inf is NaN.
        x = sum((weight * past for weight, past in terms if weight), np.zeros_like(x))
        xs.append(lifted(x, n, xs, ds))
    return xs[-1]


def main(path):
    """Sample every solver of a file with a denoiser of one picture, and print the distance to it."""
    with open(path) as file:
        solvers = json.load(file)["solvers"]
    picture, noise = np.linspace(-1, 1, 5), np.random.default_rng(0).standard_normal((3, 5))
    for solver in solvers:
        x = sample(lambda x, t, *branch: np.broadcast_to(picture, x.shape), noise, solver)
        print(f"NFE {solver['nfe']}: farthest from the picture by {np.abs(x - picture).max():.1e}")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
