"""Train a model of the zoo, measure it and write its file and card.

    python tools/zoo/train.py digits --out runs/zoo
    python tools/zoo/train.py mnist-latent --data runs/mnist-idx --out runs/zoo

mnist and mnist-* need MNIST's IDX files in --data, emoji the archive of `npm pack emoji-datasource-google@16.0.0`.
mnist-latent and mnist-flow denoise latents of mnist-autoencoder: of the file in --out if there is one, else of the
shipped one. Interrupted, the same command resumes. With --steps, emoji may end early, and resume later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cards import build_autoencoder, build_emoji, build_latent, build_model
from denoiser import train_denoiser
from emoji_data import ARCHIVE, read_emoji
from emoji_denoiser import train_all
from latents import train_autoencoder, train_latent
from loop import Progress
from recipes import AUTOENCODER, DENOISERS, EMOJI, LATENT, Recipe

import gas
from gas.workspace import claim, hold
from gas.zoo.data import digits, mnist
from gas.zoo.latent import SHARED, read_shared, shared_path

RECIPES = {**DENOISERS, SHARED: AUTOENCODER} | {name: latent.training for name, latent in LATENT.items()}
RECIPES["emoji"] = EMOJI.training


def main() -> None:
    """Read the command line, train, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of MNIST's files, or of the emoji archive"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/zoo"), help="folder for weights, card and state"
    )
    parser.add_argument(
        "--samples", type=int, help="samples that measure quality; default 5000, of latents 400, of emoji 200"
    )
    parser.add_argument("--steps", type=int, help="end after so many; default the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and order; default 0")
    parser.add_argument("--device", default="cpu", help="of the training; default cpu")
    options = parser.parse_args()
    try:
        with hold(options.out / options.name, f"tools/zoo/train.py {options.name}"):
            _run(options)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command resumes")
    except (gas.UserError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    name, out = options.name, options.out
    read: dict[str, Callable[[], Any]] = {
        "digits": digits,
        "emoji": lambda: read_emoji(options.data / ARCHIVE),
    }
    images = read.get(name, lambda: mnist(options.data))()
    recipe = replace(RECIPES[name], seed=options.seed)
    if options.steps is not None:
        if not recipe.horizon or options.steps < 1:
            raise gas.UserError(
                "--steps is a number from 1 on, for recipes whose learning rate has a horizon"
            )
        recipe = replace(recipe, steps=options.steps)
    checkpoint = out / f"{name}.state.pt"
    claim(out, [f"{name}.safetensors", f"{name}.md", checkpoint.name])
    training, build = _plan(name, recipe, images, checkpoint, options)
    for progress in training:
        print(
            f"step {progress.step}/{progress.steps}  loss {progress.loss:.4g}  {progress.seconds:.0f} s",
            flush=True,
        )
    print("measuring ...", flush=True)
    build()
    print(f"wrote {out / name}.safetensors and its card")


def _plan(
    name: str, recipe: Recipe, images: Any, checkpoint: Path, options: argparse.Namespace
) -> tuple[Iterator[Progress], Callable[[], Any]]:
    """Return the training of a model, and the function that writes its file afterwards."""
    out, device = options.out, options.device
    if name in DENOISERS:
        samples = options.samples or 5000
        training = train_denoiser(recipe, images, checkpoint, device=device)
        return training, lambda: build_model(name, images, recipe, checkpoint, out, samples=samples)
    if name == "emoji":
        latent = replace(EMOJI, training=recipe)
        training = train_all(latent, images, out, device=device)
        return training, lambda: build_emoji(latent, images, out, samples=options.samples or 200)
    measuring: Any = gas.zoo.load("mnist")
    if name == SHARED:
        training = train_autoencoder(recipe, images, checkpoint, device=device)
        return training, lambda: build_autoencoder(images, recipe, checkpoint, out, measuring)
    samples, latent = options.samples or 400, replace(LATENT[name], training=recipe)
    vae, text = read_shared(shared_path(out))
    training = train_latent(latent, images, vae.to(device), text.to(device), checkpoint, device=device)
    return training, lambda: build_latent(name, latent, images, checkpoint, out, measuring, samples=samples)


if __name__ == "__main__":
    main()
