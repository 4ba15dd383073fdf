"""``gas paper evaluate``: solvers on a preset's network, seeds and teacher."""

from __future__ import annotations

from dataclasses import replace

import typer

import gas
from gas.cli.app import command, paper
from gas.cli.evaluate import Evaluation, EvaluationOptions, evaluate_files
from gas.cli.options import FeatureOptions, Json, was_given
from gas.cli.paper.presets import PresetNetworkOptions, PresetOptions


@command(
    "gas paper evaluate cifar10 --solver runs/cifar10/gs-4.json --json",
    group=paper,
    shared=True,
    file="picture",
)
def evaluate(
    context: typer.Context,
    *,
    preset: PresetOptions,
    evaluation: EvaluationOptions,
    features: FeatureOptions,
    network: PresetNetworkOptions,
    json: Json = False,
) -> None:
    """Measure solvers as gas evaluate does; seeds and teacher are the preset's where neither option nor file says."""
    setup = preset.load()
    if not was_given(context, "seeds"):
        evaluation = at_preset_seeds(evaluation, setup)
    evaluate_preset(setup, network, evaluation, features).show(json)


def at_preset_seeds(options: EvaluationOptions, preset: gas.paper.Preset) -> EvaluationOptions:
    """Return the options with the seeds that the paper measures on."""
    first, stop = preset.evaluation_seeds
    return replace(options, seeds=f"{first}:{stop}")


def evaluate_preset(
    preset: gas.paper.Preset,
    network: PresetNetworkOptions,
    options: EvaluationOptions,
    features: FeatureOptions,
) -> Evaluation:
    """Measure solvers on a preset's network; the document says the preset and its changed settings."""
    model = network.load(preset)
    options = replace(options, metric_weights=options.metric_weights or network.preset_weights)
    evaluation = evaluate_files(model, options, features, usual=lambda nfe: preset.teacher_for(nfe).config())
    document = {"preset": preset.name, "settings": preset.changes(), **evaluation.document}
    return replace(evaluation, document={"model": model.name, **document})
