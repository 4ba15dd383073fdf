"""``gas zoo``: the shipped models and the recipe that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from gas.arguments import MAX_BATCH, MAX_ORDER_SEED
from gas.cli.app import command, holding
from gas.cli.checks import checked, existing_folder, output_folder, registered
from gas.cli.options import Device, Json, was_given
from gas.cli.screen import bar, note, print_json, print_table
from gas.display import significant
from gas.errors import UserError
from gas.workspace import claim

if TYPE_CHECKING:
    from gas.zoo.data import Images
    from gas.zoo.model import ZooModel
    from gas.zoo.train import Recipe
    from gas.zoo.training import Progress

__all__ = ["zoo"]


def _recipes() -> Iterable[str]:
    from gas.zoo.latent.recipes import LATENT
    from gas.zoo.train import RECIPES

    return (*RECIPES, "mnist-autoencoder", *LATENT)


@command("gas zoo train digits --out weights", name="zoo")
def zoo(
    context: typer.Context,
    action: Annotated[
        str,
        typer.Argument(
            help="'list' the shipped models, or 'train' one anew.",
            callback=checked(registered("action", lambda: ("list", "train"))),
        ),
    ] = "list",
    name: Annotated[
        str,
        typer.Argument(
            help="Which to train: digits, mnist, mnist-autoencoder, mnist-latent, mnist-flow.",
            callback=checked(registered("model", _recipes)),
        ),
    ] = "",
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of MNIST's IDX files, for all but digits.", callback=checked(existing_folder)
        ),
    ] = Path("data"),
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the weights, the card and the resumable state.", callback=checked(output_folder)
        ),
    ] = Path("runs/zoo"),
    samples: Annotated[
        int | None,
        typer.Option(
            help="Samples that the card's quality is measured on; default 5000, or 400 of latents.",
            min=2,
            max=MAX_BATCH,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, noise and order.", min=0, max=MAX_ORDER_SEED)] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """List the shipped models with their measured quality, or train one by its recipe.

    The latent models denoise what mnist-autoencoder encodes: their own in --out where there is one, else the shipped.
    """
    if action == "list":
        for option in ("name", "data", "out", "samples", "seed", "device"):
            if was_given(context, option):
                raise UserError(f"{option} is for gas zoo train: leave it out to list the models")
        _list(json)
        return
    if name == "digits" and was_given(context, "data"):
        raise UserError("--data is of MNIST, and digits come with scikit-learn: leave it out")
    if name == "mnist-autoencoder" and was_given(context, "samples"):
        raise UserError("--samples is of models that sample, which an autoencoder does not: leave it out")
    if not name:
        raise UserError(f"name the model to train: one of {', '.join(_recipes())}")
    with holding(out / name, f"gas zoo train {name}"):
        _train(name, data, out, samples, seed, device)


def _list(json: bool) -> None:
    from gas import zoo as models

    cards = {name: models.card(name) for name in models.names()}
    if json:
        print_json(cards)
        return
    rows = [
        [
            name,
            "x".join(map(str, card["sample_shape"])),
            f"{card['parameters']:,}",
            significant(card["frechet_to_held_out"]),
            f"{card['named_right']:.2%}",
        ]
        for name, card in cards.items()
    ]
    columns = ["model", "shape", "parameters", "Frechet to held-out data", "samples named right"]
    print_table("Zoo", columns, rows)


def _train(name: str, data: Path, out: Path, samples: int | None, seed: int, device: str) -> None:
    from gas.zoo.data import digits, mnist
    from gas.zoo.latent.recipes import AUTOENCODER, LATENT
    from gas.zoo.train import RECIPES

    recipes = {**RECIPES, "mnist-autoencoder": AUTOENCODER}
    recipes |= {name: kind.recipe for name, kind in LATENT.items()}
    if name not in recipes:
        raise UserError(f"name the model to train: one of {', '.join(recipes)}, got {name!r}")
    images = digits() if name == "digits" else mnist(data)
    recipe, checkpoint = replace(recipes[name], seed=seed), out / f"{name}.state.pt"
    claim(out, [f"{name}.safetensors", f"{name}.md", checkpoint.name])
    training, build = _plan(name, recipe, images, checkpoint, out, samples, device)
    try:
        with bar(name, recipe.steps) as running:
            for progress in training:
                running.at(progress.step, f"loss {significant(progress.loss)}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"State is in {checkpoint}; the same command goes on from there.") from None
    note("making the card: classifier, samples, distances ...")
    note(f"wrote {build()} and its card")


def _plan(
    name: str, recipe: Recipe, images: Images, checkpoint: Path, out: Path, samples: int | None, device: str
) -> tuple[Iterator[Progress], Callable[[], Path]]:
    """The training of a model, and what makes its file of it."""
    if name in ("digits", "mnist"):
        from gas.zoo.build import build_model
        from gas.zoo.train import train_denoiser

        training = train_denoiser(recipe, images, checkpoint, device=device)
        return (
            training,
            lambda: build_model(name, images, recipe, checkpoint, out, samples=samples or 5000).path,
        )
    from gas import zoo as models
    from gas.zoo.latent import build, model, recipes, train

    measuring = cast("ZooModel", models.load("mnist"))
    if name == model.SHARED:
        training = train.train_autoencoder(recipe, images, checkpoint, device=device)
        return training, lambda: build.build_autoencoder(images, recipe, checkpoint, out, measuring)
    kind = replace(recipes.LATENT[name], recipe=recipe)
    vae, text = model.read_shared(model.shared_beside(out))
    training = train.train_latent(kind, images, vae.to(device), text.to(device), checkpoint, device=device)
    return training, lambda: build.build_latent(
        name, kind, images, checkpoint, out, measuring, samples=samples or 400
    )
