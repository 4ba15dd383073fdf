"""``gas zoo``: the shipped models and the recipe that made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gas.cli.app import command
from gas.cli.options import Device, Json
from gas.cli.screen import bar, note, print_json, print_table

__all__ = ["zoo"]


@command("gas zoo train digits --out weights", name="zoo")
def zoo(
    action: Annotated[str, typer.Argument(help="'list' the shipped models, or 'train' one anew.")] = "list",
    name: Annotated[str, typer.Argument(help="Which model to train: digits or mnist.")] = "",
    data: Annotated[Path, typer.Option(help="Folder of MNIST's IDX files, for mnist.")] = Path("data"),
    out: Annotated[
        Path, typer.Option(help="Folder for the weights, the card and the resumable state.")
    ] = Path("runs/zoo"),
    samples: Annotated[int, typer.Option(help="Samples that the card's quality is measured on.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of weights, noise and order.")] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """List the shipped models with their measured quality, or train one by its recipe."""
    if action == "list":
        _list(json)
    elif action == "train":
        _train(name, data, out, samples, seed, device)
    else:
        raise ValueError(f"action must be 'list' or 'train', got {action!r}")


def _list(json: bool) -> None:
    from gas import zoo as models

    cards = {name: dict(models.load(name).card) for name in models.names()}
    if json:
        print_json(cards)
        return
    rows = [
        [
            name,
            "x".join(map(str, card["sample_shape"])),
            f"{card['parameters']:,}",
            f"{card['frechet_to_held_out']:.2f}",
            f"{card['named_right']:.2%}",
        ]
        for name, card in cards.items()
    ]
    columns = ["model", "shape", "parameters", "Frechet to held-out data", "samples named right"]
    print_table("Zoo", columns, rows)


def _train(name: str, data: Path, out: Path, samples: int, seed: int, device: str) -> None:
    from gas.zoo.build import build_model
    from gas.zoo.data import digits, mnist
    from gas.zoo.train import RECIPES, train_denoiser

    if name not in RECIPES:
        raise ValueError(f"name the model to train: one of {', '.join(RECIPES)}, got {name!r}")
    images = digits() if name == "digits" else mnist(data)
    recipe, checkpoint = replace(RECIPES[name], seed=seed), out / f"{name}.state.pt"
    try:
        with bar(name, recipe.steps) as running:
            for progress in train_denoiser(recipe, images, checkpoint, device=device):
                running.at(progress.step, f"loss {progress.loss:.4f}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"State is in {checkpoint}; the same command goes on from there.") from None
    note("training the classifier and measuring samples ...")
    model = build_model(name, images, recipe, checkpoint, out, samples=samples)
    note(f"wrote {model.path} and its card")
