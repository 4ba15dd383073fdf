"""``gas zoo``: list the shipped models."""

from __future__ import annotations

import gas
from gas.cli.app import command
from gas.cli.options import Json
from gas.cli.screen import print_json, print_table
from gas.display import significant


@command("gas zoo")
def zoo(json: Json = False) -> None:
    """List the shipped models with their measured quality; --json prints their cards.

    tools/zoo/train.py of the repository trains them anew.
    """
    cards = {name: gas.zoo.card(name) for name in gas.zoo.names()}
    if json:
        print_json(cards)
        return
    rows = [
        {
            "model": name,
            "shape": "x".join(map(str, card["sample_shape"])),
            "parameters": f"{card['parameters']:,}",
            "Frechet to real data": significant(
                card["frechet_to_held_out" if "frechet_to_held_out" in card else "frechet"]
            ),
            "classifier accuracy": f"{card['named_right']:.2%}",
        }
        for name, card in cards.items()
    ]
    print_table("Zoo", rows)
