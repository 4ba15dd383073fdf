"""CompVis's latent diffusion through diffusers' modules: equal to the same weights run under their own names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gas
from gas.paper import ldm
from support import compvis
from support.compvis import State
from support.ldm_checkpoints import FIRST, STEPS, UNET, X, checkpoint, saved
from support.published import close


@pytest.fixture(scope="module", params=[0, 5], ids=["lsun", "imagenet"])
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, State, Path]:
    state = checkpoint(request.param)
    return request.param, state, saved(state, tmp_path_factory.mktemp("ldm") / "model.ckpt")


def noise_of(state: State, classes: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def network(x: Tensor, steps: Tensor, labels: Tensor | None) -> Tensor:
        context = state["cond_stage_model.embedding.weight"][labels][:, None] if classes else None
        return compvis.unet(state, x, steps, context, **UNET)

    return network


def test_the_network_answers_as_under_its_own_names(converted: tuple[int, State, Path]) -> None:
    classes, state, path = converted
    model = ldm.load(path, latent_size=8)
    labels = torch.tensor([4, classes]) if classes else None
    assert model.weights is not None
    answer = model.weights.double()(X, STEPS, labels)
    assert close(answer, noise_of(state, classes)(X, STEPS, labels), 1e-6)  # weights are kept in float32


def test_the_first_stage_answers_as_under_its_own_names(converted: tuple[int, State, Path]) -> None:
    _, state, path = converted
    first = ldm.load_first_stage(path).double()
    z = compvis.encode(state, X, "first_stage_model.", **FIRST, width=3)
    assert close(first.encode(X).latents, z, 1e-6)
    assert close(
        first.decode(z).sample, compvis.decode(state, z, "first_stage_model.", **FIRST, codes=16), 1e-6
    )


def test_every_weight_goes_somewhere_once(converted: tuple[int, State, Path]) -> None:
    """Numbers in equal numbers out: of both networks, the table of classes and the noise levels."""
    _, state, path = converted
    read = ldm.read(path).tensors
    for source_prefix, target_prefix in (
        ("model.diffusion_model.", "unet."),
        ("first_stage_model.", "first."),
        ("", ""),
    ):
        before = torch.cat([v.float().flatten() for k, v in state.items() if k.startswith(source_prefix)])
        after = torch.cat([v.float().flatten() for k, v in read.items() if k.startswith(target_prefix)])
        assert torch.equal(before.sort().values, after.sort().values)


def test_a_model_to_sample(converted: tuple[int, State, Path]) -> None:
    classes, state, path = converted
    model = ldm.load(path, latent_size=8, name="tiny")
    assert isinstance(model, gas.models.Model)
    assert (model.sample_shape, model.classes, model.name) == ((3, 8, 8), classes, "tiny")
    assert close(model.schedule(0.5)[0] ** 2, state["alphas_cumprod"][499].double(), 1e-7)
    t = torch.tensor(0.301, dtype=torch.float64)
    alpha, sigma = model.schedule(t)
    labels = torch.tensor([1, 2]) if classes else None
    noise = noise_of(state, classes)(X, torch.full((2,), 300.0, dtype=torch.float64), labels)
    assert close(model.bind(labels)(X, t), (X - sigma * noise) / alpha, 1e-5)
    if classes:
        both = model.bind(labels, 2.0)(X, t)
        assert close(both, 2 * model.bind(labels)(X, t) - model.denoise(X, t), 1e-5)


def test_converted_files_answer_alike(converted: tuple[int, State, Path], tmp_path: Path) -> None:
    _, _, path = converted
    file = tmp_path / "model.safetensors"
    ldm.write(ldm.read(path), file, path)
    assert ldm.load(file).fingerprint() | {"name": ""} == ldm.load(path).fingerprint() | {"name": ""}
    assert torch.equal(
        ldm.load_first_stage(file).decode(X.float()).sample,
        ldm.load_first_stage(path).decode(X.float()).sample,
    )


def test_the_running_average_is_what_is_sampled(tmp_path: Path) -> None:
    """CompVis keeps it under names without dots; its own sampling uses it."""
    state, average = checkpoint(0), State(seed=9)
    compvis.unet(average, X, STEPS, None, **UNET)
    short = {"model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in average.items()}
    path = saved(state | short, tmp_path / "model.ckpt")
    model = ldm.load(path, latent_size=8)
    assert model.weights is not None
    assert close(model.weights.double()(X, STEPS), noise_of(average, 0)(X, STEPS, None), 1e-6)


def test_a_first_stage_alone(tmp_path: Path) -> None:
    state = State()
    z = compvis.encode(state, X, "", **FIRST, width=3)
    expected = compvis.decode(state, z, "", **FIRST, codes=16)
    state.draw("loss.discriminator.main.0.weight", 4, 4)
    path = saved(state, tmp_path / "vq.ckpt")
    assert close(ldm.load_first_stage(path).double().decode(z).sample, expected, 1e-6)
    with pytest.raises(ValueError, match=r"vq.ckpt holds a first stage alone, which has nothing to sample"):
        ldm.load(path)


@pytest.mark.parametrize("change", ["odd name", "missing", "head", "nothing"])
def test_checkpoints_of_something_else(change: str, tmp_path: Path) -> None:
    state, options = checkpoint(0), {}
    if change == "odd name":
        state["model.diffusion_model.label_emb.weight"] = torch.zeros(2, 2)
    elif change == "missing":
        del state["model.diffusion_model.out.2.bias"]
    elif change == "head":
        options["head_channels"] = 24
    else:
        state = State()
    path = saved(state, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"another architecture|holds no latent diffusion model") as caught:
        ldm.load(path, latent_size=8, **options)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_lightning_keeps_is_read_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    import numpy as np

    names = [
        "pytorch_lightning",
        "pytorch_lightning.callbacks",
        "pytorch_lightning.callbacks.model_checkpoint",
    ]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kind = type("ModelCheckpoint", (), {"__module__": names[-1]})
    sys.modules[names[-1]].ModelCheckpoint = kind
    record = {"best_model_score": torch.tensor(1.5), "monitor": "val", "best": np.float32(2.5)}
    path = saved(checkpoint(0), tmp_path / "model.ckpt", callbacks={kind: record})
    called = saved(checkpoint(0), tmp_path / "called.ckpt", callbacks=[kind()])
    monkeypatch.undo()
    assert ldm.load(path, latent_size=8).classes == 0
    assert gas.unpickle.read_pickle(path)["callbacks"].popitem()[1]["best"] == 2.5
    with pytest.raises(ValueError, match=r"called\.ckpt: refused"):
        gas.unpickle.read_pickle(called)
