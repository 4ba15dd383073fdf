"""One solver for a range of guidance scales: the laws of its joint step, and that it serves scales between."""

import math
from dataclasses import replace

import pytest
import torch

import gas
from gas.classical.registry import Classical
from gas.learned.guidance import GuidanceBNS
from gas.losses import ROUNDING, l2
from gas.pairs.dataset import join_scales
from gas.pairs.teacher import teach
from gas.sampling import sample
from gas.solver_file import load, save
from gas.table import table_of
from gas.training.distillation import Distilled
from gas.training.gauss_newton import Batch, GaussNewton, GaussNewtonSteps
from gas.training.initialization import StartSearch
from gas.training.linearization import Normal, joined
from gas.training.loop import FitRecord
from gas.training.scales import _GeometricMean, distill_scales, reference_scale
from gas.training.validation import evaluate
from support.doubles import guided_mixture

pytestmark = pytest.mark.usefixtures("quick_gauss_newton")

MODEL = guided_mixture()
TEACHER = Classical("unipc-3-bh2", "log_snr", 20, MODEL.t_end)
SCALES = (1.5, 2.0, 2.5)
FEW = GaussNewton(iterations=6, batch=36, validate_every=3)
OPTIONS = {"config": FEW, "search": StartSearch("unipc-3-bh2/log_snr")}


def taught(seeds, *scales):
    return [teach(MODEL, TEACHER, seeds, guidance=scale) for scale in scales]


@pytest.fixture(scope="module")
def pairs():
    return taught(range(96), *SCALES)


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1048), *SCALES)


@pytest.fixture(scope="module")
def learned(pairs, validation):
    return list(distill_scales(MODEL, pairs, validation, [2], **OPTIONS))


def moved_solver():
    table = Classical("unipc-2-bh2", "log_snr", 2, MODEL.t_end).table(MODEL.schedule)
    solver = GuidanceBNS.from_table(
        MODEL.schedule, table, MODEL.t_end, scales=(1.5, 2.5), reference=2.0, degree=2
    )
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return solver


def whole(part):
    """A step's pairs of one scale, all of them and alike."""
    ones = torch.ones(len(part), dtype=torch.float64)
    return Batch(part, ones, ones)


def test_the_gradient_of_a_joint_step_is_that_of_the_weighted_loss(pairs):
    """The Jacobian in the coefficients is the one in a table's numbers, times the powers of the scale."""
    solver, joint = moved_solver(), join_scales([part.subset(slice(0, 12)) for part in pairs])
    steps = GaussNewtonSteps(solver, MODEL, joint, l2, replace(FEW, outlier=math.inf))
    p, differences = steps._parameters(), steps._measured_differences()
    parts = joint.by_scale()
    normals = {part.guidance: steps._normal(p, whole(part), differences) for part in parts}
    normal = joined(normals, steps.scales)
    jacobian = torch.autograd.functional.jacobian(steps._numbers, p)
    by_model = 2 * jacobian.T @ normal.gradient

    weight, total = iter(normal.weights.split([len(part) for part in parts])), torch.zeros(())
    for part in parts:
        samples = sample(MODEL.bind(part.labels, part.guidance), part.noise, solver(part.guidance))
        total = total + (next(weight) * l2(samples, part.target)).sum() / len(joint)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(solver.parameters()))])
    assert float((by_model - exact).norm()) < 0.02 * float(exact.norm())
    assert normal.loss == pytest.approx(float(total.detach()), rel=1e-4)


def test_every_scale_counts_alike_whatever_the_size_of_its_loss(pairs):
    solver, joint = moved_solver(), join_scales([part.subset(slice(0, 12)) for part in pairs])
    steps = GaussNewtonSteps(solver, MODEL, joint, l2, replace(FEW, outlier=math.inf))
    p, differences = steps._parameters(), steps._measured_differences()
    normals = {part.guidance: steps._normal(p, whole(part), differences) for part in joint.by_scale()}
    normal = joined(normals, steps.scales)
    shares = [float(part.mean()) for part in (normal.weights * normal.losses).split(12)]
    assert shares == pytest.approx([shares[0]] * 3, rel=1e-9)
    size = len(normals[1.5].gradient)
    blocks = normal.curvature.reshape(3, size, 3, size)
    assert all(bool((blocks[i, :, j] == 0).all()) == (i != j) for i in range(3) for j in range(3))
    # A scale that a step sees no pairs of leaves its numbers alone.
    some = joined({2.0: normals[2.0]}, steps.scales)
    assert torch.equal(some.gradient.reshape(3, size)[1], normals[2.0].gradient)
    assert not some.gradient.reshape(3, size)[[0, 2]].any()


def test_pairs_of_one_scale_take_the_steps_that_they_always_took(pairs):
    """A set of one scale is no joint one: the same bits by a GuidanceBNS at its reference and by a BNS."""
    table = Classical("unipc-2-bh2", "log_snr", 2, MODEL.t_end).table(MODEL.schedule)
    losses = []
    for scaled in (False, True):
        solver = gas.BNS.from_table(MODEL.schedule, table, MODEL.t_end)
        if scaled:
            solver = GuidanceBNS.from_table(
                MODEL.schedule, table, MODEL.t_end, scales=(1.5, 2.5), reference=2.0
            )
        steps = GaussNewtonSteps(solver, MODEL, pairs[1], l2, FEW)
        losses.append([steps.step() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_it_is_better_than_one_table_at_scales_that_were_trained_and_at_those_between(learned, validation):
    *records, result = learned
    assert isinstance(result, Distilled) and isinstance(result.solver, GuidanceBNS)
    start = next(each for each in records if isinstance(each, Distilled))
    last = [record for record in records if isinstance(record, FitRecord)][-1]
    assert last.best_loss < last.start_loss
    between = taught(range(2000, 2048), 1.75, 2.25)
    gains = []
    for part in (*validation, *between):
        table = table_of(result.solver, part.guidance)
        ours, theirs = (float(evaluate(MODEL, part, t, l2).mean()) for t in (table, start.table()))
        gains.append(theirs / ours)
    assert min(gains[0], *gains[2:]) > 1.2  # all but the start's own scale
    assert torch.tensor(gains).log().mean() > 0.5


def test_the_result_states_the_losses_of_all_scales_and_the_file_serves_them(learned, validation, tmp_path):
    result = learned[-1]
    for part in validation:
        loss = float(evaluate(MODEL, part, table_of(result.solver, part.guidance), l2).mean())
        assert result.measured()[f"validation_loss_guidance_{part.guidance:g}"] == pytest.approx(loss)
    assert result.loss == result.measures["validation_loss_guidance_2"]
    training = result.provenance["training"]
    assert (training["scales"], training["degree"]) == (list(SCALES), 2)
    assert (training["pairs"], training["validation"], training["seeds"]) == (288, 144, [0, 1048])
    assert (training["solver"], training["iterations"]) == ("gs", FEW.iterations)
    save(tmp_path / "s.json", result, model=MODEL)
    artefact = load(tmp_path / "s.json")
    assert artefact.document.scales == (1.5, 2.5)
    assert artefact.document.guidance == 2.0
    x, labels = MODEL.noise(range(4)), torch.arange(4)
    for scale in (1.5, 1.9, 2.0, 2.5):
        artefact.check(MODEL, scale)
        denoise = MODEL.bind(labels, scale)
        expected = sample(denoise, x, table_of(result.solver, scale))
        assert torch.equal(sample(denoise, x, artefact.at(scale).table(2)), expected)


def test_a_training_goes_on_from_the_table_of_its_own_scale(pairs, validation):
    """A solver of several scales as the start of pairs of another scale than its reference."""
    artefact = save(None, moved_solver(), model=MODEL)
    options = {"config": replace(FEW, iterations=0), "search": StartSearch(artefact, finalists=1)}
    records = list(gas.distill(MODEL, pairs[2], validation[2], 2, **options))
    first = next(record for record in records if isinstance(record, FitRecord))
    losses = [float(evaluate(MODEL, validation[2], artefact.at(w).table(2), l2).mean()) for w in (2.5, 2.0)]
    assert first.validation_loss == pytest.approx(losses[0])
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(pairs, validation, learned, tmp_path):
    run = distill_scales(MODEL, pairs, validation, [2], state=tmp_path, **OPTIONS)
    start = next(each for each in run if isinstance(each, Distilled))
    next(run), next(run)
    run.close()
    assert (tmp_path / "scales-2.pt").exists()
    again = list(distill_scales(MODEL, pairs, validation, [2], members=[start], state=tmp_path, **OPTIONS))
    for mine, other in zip(again[-1].solver.parameters(), learned[-1].solver.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("scales", "middle"), [([1, 2, 4, 8], 2), ([3.0, 1.0, 2.0], 2.0), ([7.5, 1], 1), ([1, 2, 3, 4, 5], 3)]
)
def test_training_starts_at_the_middle_scale(scales, middle):
    assert reference_scale(scales) == middle


def test_what_is_no_range_is_refused(pairs, validation):
    for sets in (pairs[:1], [pairs[0], pairs[0]]):
        with pytest.raises(
            gas.UserError, match=r"^pairs of at least two guidance scales, one set each, got 1.5"
        ):
            list(distill_scales(MODEL, sets, sets, [2]))
    other = teach(MODEL, replace(TEACHER, nfe=8), range(8), guidance=4.0)
    with pytest.raises(gas.UserError, match=r"must differ in nothing else \(.*nfe"):
        list(distill_scales(MODEL, [pairs[0], other], validation[:2], [2]))
    with pytest.raises(gas.UserError, match=r"Gauss-Newton needs a loss that is a sum of squares"):
        GaussNewton().optimizer(
            solver=moved_solver(), model=MODEL, pairs=join_scales(pairs), loss=gas.losses.l1
        )


def test_what_does_not_fit_is_refused_before_any_training(pairs, validation):
    for sets, chosen, degree, message in (
        (
            pairs,
            validation[:2],
            2,
            r"^validation must have the scales of the pairs, 1.5, 2, 2.5, got 1.5, 2: ",
        ),
        (pairs, [], 2, r"^validation must have the scales of the pairs, 1.5, 2, 2.5, got none"),
        (pairs, pairs, 2, r"^training and validation pairs share seeds"),
        (pairs, validation, 0, r"^degree must be from 1 to 8, got 0"),
        (pairs, validation, 1.5, r"^degree must be an integer, got 1.5"),
    ):
        with pytest.raises(gas.UserError, match=message):
            next(distill_scales(MODEL, sets, chosen, [2], degree=degree))


@pytest.mark.parametrize("given", [{"loss": "l1"}, {"config": gas.Adam()}])
def test_another_loss_or_optimizer_is_refused_before_any_training(pairs, validation, given):
    with pytest.raises(gas.UserError, match=r"^a range of scales is learned by Gauss-Newton on l2, got "):
        next(distill_scales(MODEL, pairs, validation, [2], **given))


def test_two_scales_are_learned_with_lines_from_a_start_without_provenance(pairs, validation):
    """Two scales determine no more than a line; the seeds of the file are those of both sets."""
    start = Classical("unipc-2-bh2", "log_snr", 2, MODEL.t_end)
    member = Distilled(2, start.table(MODEL.schedule), start.spec, start, 0.0, 0.0, 0)
    sets = [pairs[0].subset(slice(0, 12)), pairs[2].subset(slice(50, 62))]
    config = GaussNewton(iterations=1, batch=12)
    *_, result = distill_scales(MODEL, sets, validation[::2], [2], members=[member], config=config)
    assert len(result.solver.coefficients()) == 2
    assert result.provenance["training"]["degree"] == 1
    assert result.provenance["training"]["seeds"] == [0, 1048]


def test_a_scale_without_any_loss_makes_nothing_infinite(pairs, validation):
    """A start that is the teacher at a scale has loss 0 there: its pairs weigh as those of float32's rounding."""
    solver = moved_solver()
    exact = [
        replace(
            part, target=sample(MODEL.bind(part.labels, part.guidance), part.noise, solver(part.guidance))
        )
        for part in (each.subset(slice(0, 4)) for each in validation)
    ]
    mean = _GeometricMean(solver, MODEL, [exact[0], *validation[1:]], l2)
    exactly, *others = (float(values.mean()) for values in mean.losses().values())
    assert exactly < ROUNDING
    assert mean(solver()) == pytest.approx((ROUNDING * math.prod(others)) ** (1 / 3), rel=1e-9)
    ones = torch.ones(2, dtype=torch.float64)
    zero = Normal(0 * ones, ones, torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 0)
    unit_losses = replace(zero, losses=ones)
    for normals in ({1.0: zero, 2.0: unit_losses}, {1.0: zero, 2.0: zero}):
        normal = joined(normals, (1.0, 2.0))
        assert normal.curvature.isfinite().all() and math.isfinite(normal.loss)
