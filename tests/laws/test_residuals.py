"""Lifted tables: the definition in a few lines, the table exactly while a residual is zero, and every form and size."""

import numpy as np
import pytest
import torch

import gas
from gas.learned.interpolation import interpolated
from gas.pairs.fingerprint import pairs_fingerprint
from gas.residual import MAX_NUMBERS
from gas.training.elimination import without_row
from gas.training.linearization import linearize, measure_differences, numbers
from support.solvers import LEARNED, NAMES, table_named

NFE = 4
SHAPE = (3, 2, 4, 6)
ALL = [*NAMES, *LEARNED]


def network(x, t):
    return torch.tanh(x + t) * 0.9


def start(dtype=torch.float64, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def residual(row, shape=SHAPE, size=0.3, **options):
    """A residual with numbers of its own; its row may read all that there is."""
    form = "token" if len(shape) < 4 and "dimensions" not in options else "convolution"
    channels = shape[-1] if form == "token" else shape[1]
    states, outputs = options.pop("reads", (max(row + 1, 1), row + 1))
    scales = torch.linspace(0.5, 2, states + outputs + 1)
    lifted = gas.Residual(form, channels, states, outputs, width=5, scales=scales, **options)
    generator = torch.Generator().manual_seed(row + 2)
    with torch.no_grad():
        for parameter in lifted.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return lifted


def lifted(table, rows, **options):
    residuals = {row: residual(row, **options) for row in rows}
    return gas.Table(table.times, table.states, table.outputs, table.branches, residuals)


def by_definition(denoise, x, table):
    """Every term of every row written out, and each network from its numbers."""

    def corrected(x, row, xs, ds):
        r = table.residuals.get(row)
        return x if r is None else x + convolved(r, [*xs[: r.states], *ds[len(ds) - r.outputs :]])

    xs, ds = [corrected(x, -1, [x], [])], []
    for n, t in enumerate(table.times):
        ds.append(denoise(xs[n], t))
        total = sum(float(w) * past for w, past in zip(table.states[n], xs, strict=False))
        total = total + sum(float(w) * d for w, d in zip(table.outputs[n], ds, strict=False))
        xs.append(corrected(total, n, xs, ds))
    return xs[-1]


def convolved(r, inputs):
    """A convolutional residual of two sizes, in NumPy: nine shifted products a layer."""
    x = np.concatenate([y.numpy() / float(s) for y, s in zip(inputs, r.scales, strict=False)], axis=1)
    for n, (weight, bias) in enumerate(zip(r.weights, r.biases, strict=True)):
        x = np.pad(x * (1 + np.tanh(x / 2)) / 2 if n else x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = x.shape[2] - 2, x.shape[3] - 2
        x = bias.detach().double().numpy()[:, None, None] + sum(
            np.einsum(
                "oi,bihw->bohw", weight[:, :, i, j].detach().double(), x[:, :, i : i + height, j : j + width]
            )
            for i in range(3)
            for j in range(3)
        )
    return torch.from_numpy(x * float(r.scales[-1]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_new_residual_changes_no_bit(name, dtype):
    table, x = table_named(name, NFE), start(dtype)
    rows = {row: gas.Residual("convolution", 2, max(row + 1, 1), row + 1, width=4) for row in range(-1, NFE)}
    ends = {row: rows[row] for row in (-1, NFE - 1)}
    begun, everywhere = (
        gas.Table(table.times, table.states, table.outputs, residuals=r) for r in (ends, rows)
    )
    assert torch.equal(gas.sample(network, x, begun), gas.sample(network, x, table))
    # No state is folded away where every one is corrected.
    assert torch.equal(gas.sample(network, x, everywhere), by_rows(table, x))


def by_rows(table, x):
    stepper = gas.Stepper(table)
    for t in stepper.times:
        x = stepper.step(x, network(x, t))
    return x


@pytest.mark.parametrize("rows", [(-1,), (0,), (1, 2), (NFE - 1,), (-1, 1, NFE - 1)], ids=str)
@pytest.mark.parametrize("name", ["ddim", "heun", "unipc-3-bh2", "generalized", "bns"])
@pytest.mark.parametrize("fold", ["sample", True, False])
def test_every_lifted_table_runs_as_defined(name, rows, fold):
    table, x = lifted(table_named(name, NFE), rows), start()
    expected = by_definition(network, x, table)
    assert float((expected - gas.sample(network, x, table_named(name, NFE))).abs().max()) > 1e-2
    if fold == "sample":
        state = gas.sample(network, x, table)
    else:
        stepper = gas.Stepper(table, fold=fold)
        state = stepper.start(x)
        for t in stepper.times:
            state = stepper.step(state, network(state, t))
    torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gas.sample(network, x, table.folded()), expected, rtol=1e-12, atol=1e-12)


def test_a_residual_may_read_less_than_its_row_has():
    for reads in [(1, 0), (0, 1), (1, 2), (2, 3)]:
        table = lifted(table_named("ipndm-3", NFE), [2], reads=reads)
        torch.testing.assert_close(
            gas.sample(network, start(), table),
            by_definition(network, start(), table),
            rtol=1e-12,
            atol=1e-12,
        )


def test_a_folded_lifted_table_weighs_no_state_but_those_that_are_corrected():
    table = lifted(table_named("generalized", NFE), [-1, 1])
    assert table.corrected == [0, 2]
    assert not table.folded().states[:, [1, 3]].any()
    assert table.folded().residuals == table.residuals
    plain = table_named("generalized", NFE)
    assert lifted(plain, [-1, NFE - 1]).folded().states.equal(plain.folded().states)


def test_states_of_a_trajectory_are_the_corrected_ones():
    table, x = lifted(table_named("ddim", NFE), [-1, NFE - 1]), start()
    states = list(gas.trajectory(network, x, table))
    assert len(states) == NFE + 1
    torch.testing.assert_close(states[0], x + convolved(table.residuals[-1], [x]))
    assert torch.equal(states[-1], gas.sample(network, x, table))
    with torch.no_grad():
        for state, expected in zip(gas.trajectory(network, x, table), states, strict=True):
            assert torch.equal(state, expected)
            state.zero_()
    assert torch.equal(x, start())


@pytest.mark.parametrize("rows", [(-1, 1), (NFE - 1,)], ids=str)
def test_no_sample_depends_on_its_batch(rows):
    table, x = lifted(table_named("unipc-2-bh2", NFE), rows), start()
    alone = torch.cat([gas.sample(network, part, table) for part in x.split(1)])
    torch.testing.assert_close(gas.sample(network, x, table), alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3), {}),
        ((2, 7, 3), {}),
        ((2, 3, 6), {"dimensions": 1}),
        ((2, 3, 6), {"dimensions": 1, "patch": 3}),
        ((2, 3, 4, 6), {"patch": 2}),
        ((2, 1, 2, 4, 6), {"dimensions": 3}),
        ((2, 1, 2, 4, 6), {"dimensions": 3, "patch": 2}),
    ],
    ids=str,
)
def test_every_form_runs_and_repeats_its_config(shape, options):
    table = lifted(table_named("ddim", NFE), [-1, 1, NFE - 1], shape=shape, **options)
    x = start(torch.float32, shape)
    result = gas.sample(network, x, table)
    assert result.shape == x.shape
    for residual in table.residuals.values():
        again = gas.Residual.from_config(residual.config())
        again.load_state_dict(residual.state_dict())
        assert again.cost(shape[1:]).numbers == sum(p.numel() for p in residual.parameters())
    assert torch.equal(gas.sample(network, x, table.detach()), result)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_convolution_is_the_same_at_every_size(patch, dimensions):
    """Inside a larger sample, away from the borders' padding, the result is that of the crop."""
    shape = (1, 2, *[24] * dimensions)
    large = residual(0, shape, reads=(1, 1), patch=patch, dimensions=dimensions)
    x, d = start(shape=shape), start(shape=shape).cos()
    crop = (..., *[slice(4, 20)] * dimensions)
    margin = 3 * patch  # three layers, each of which reaches one place further
    inside = (..., *[slice(margin, 16 - margin)] * dimensions)
    whole, part = large([x], [d])[crop], large([x[crop]], [d[crop]])
    torch.testing.assert_close(whole[inside], part[inside])
    assert not torch.allclose(whole, part)


def test_patches_are_those_of_pixel_unshuffle():
    from gas.residual import _from_patches, _to_patches

    x = start()
    assert torch.equal(_to_patches(x, 2, 2), torch.nn.functional.pixel_unshuffle(x, 2))
    for shape in [(2, 3, 6), (2, 3, 4, 6), (2, 3, 2, 4, 6)]:
        x = start(shape=shape)
        assert torch.equal(_from_patches(_to_patches(x, len(shape) - 2, 2), len(shape) - 2, 2), x)


def test_tokens_are_independent():
    r, x = residual(0, (2, 7, 3), reads=(1, 1)), start(shape=(2, 7, 3))
    whole = r([x], [x.cos()])
    for token in range(7):
        torch.testing.assert_close(whole[:, token], r([x[:, token]], [x[:, token].cos()]))


def test_a_residual_divides_its_inputs_by_their_scales():
    """A state of standard deviation 80 counts as one of 1 does, and the result has the last scale."""
    unit, scaled = residual(0, reads=(1, 1)), residual(0, reads=(1, 1))
    unit.scales.fill_(1)
    scaled.scales.copy_(torch.tensor([80.0, 0.5, 3.0]))
    x, d = start(), start().cos()
    torch.testing.assert_close(scaled([80 * x], [0.5 * d]), 3 * unit([x], [d]))


def test_half_precision_states_are_corrected_in_float32_whatever_autocast_says():
    table, x = lifted(table_named("ddim", NFE), [NFE - 1]), start(torch.bfloat16)
    r = table.residuals[NFE - 1]
    assert r([x] * NFE, [x] * NFE).dtype == torch.float32
    expected = gas.sample(lambda x, t: x / 2, x, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gas.sample(lambda x, t: x / 2, x, table), expected)
    assert expected.dtype == torch.bfloat16


def test_gradients_reach_residuals_tables_and_the_start():
    plain, x = table_named("unipc-2-bh2", 3), start().requires_grad_()
    states, outputs = plain.states.requires_grad_(), plain.outputs.requires_grad_()
    rows = {row: residual(row).double() for row in (-1, 1, 2)}
    parameters = [p for r in rows.values() for p in r.parameters()]

    def loss():
        return gas.sample(network, x, gas.Table(plain.times, states, outputs, residuals=rows)).square().sum()

    gradients = torch.autograd.grad(loss(), [x, states, outputs, *parameters])
    assert all(bool(g.any()) for g in gradients)
    generator = torch.Generator().manual_seed(0)
    moves = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((g * v).sum() for g, v in zip(gradients[3:], moves, strict=True))
    ends = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            for p, v in zip(parameters, moves, strict=True):
                p.add_(h * v)
            ends.append(float(loss()))
            for p, v in zip(parameters, moves, strict=True):
                p.sub_(h * v)
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_a_zero_residual_learns_from_its_last_layer_on():
    r = gas.Residual("convolution", 2, NFE, NFE, width=4)
    table = table_named("ddim", NFE)
    table = gas.Table(table.times, table.states, table.outputs, residuals={NFE - 1: r})
    gas.sample(network, start(torch.float32), table).square().sum().backward()
    assert bool(r.weights[-1].grad.any())
    assert not r.weights[0].grad.any()


def test_a_detached_table_has_copies_of_its_residuals():
    table, x = lifted(table_named("ddim", NFE), [1]), start()
    copied = table.detach()
    before = gas.sample(network, x, copied)
    with torch.no_grad():
        table.residuals[1].biases[-1].add_(1)
    assert torch.equal(gas.sample(network, x, copied), before)
    assert not torch.equal(gas.sample(network, x, table), before)
    assert not before.requires_grad


def test_branches_of_one_state_are_one_call_until_a_residual_moves_the_state():
    class Mixed:
        branches = ("conditional", "unconditional")

        def __init__(self):
            self.calls = []

        def select(self, *names):
            def denoise(x, t):
                self.calls.append(names)
                shares = {"conditional": 0.9, "unconditional": -0.4}
                parts = zip(x.chunk(len(names)), names, strict=True)
                return torch.cat([torch.tanh(part + t) * shares[name] for part, name in parts])

            return denoise

    guided = table_named("ddim", 2).guided(2.0)
    for row, calls in [(0, 3), (1, 2), (3, 2)]:
        denoise, plain = Mixed(), Mixed()
        table, numbered = lifted(guided, [row]), iter(guided.branches)
        expected = by_definition(lambda x, t: plain.select(next(numbered))(x, t), start(), table)  # noqa: B023
        torch.testing.assert_close(gas.sample(denoise, start(), table), expected, rtol=1e-12, atol=1e-12)
        assert len(denoise.calls) == calls


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1], "residuals must be a gas.Residual for each of some rows, got list"),
        ({4: residual(0)}, "a row of residuals must be from -1 to 3, got 4"),
        ({-2: residual(0)}, "a row of residuals must be from -1 to 3, got -2"),
        ({1: torch.nn.Conv2d(2, 2, 3)}, "the residual of row 1 must be a gas.Residual, got Conv2d"),
        ({0: residual(1)}, "the residual of row 0 reads 2 states and 2 outputs, the row has 1 and 1"),
        ({-1: residual(0)}, "the residual of row -1 reads 1 states and 1 outputs, the row has 1 and 0"),
    ],
)
def test_residuals_that_a_table_cannot_have_are_refused(rows, message):
    table = table_named("ddim", NFE)
    with pytest.raises(gas.UserError, match=message):
        gas.Table(table.times, table.states, table.outputs, residuals=rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "dense"}, "form must be 'convolution' or 'token', got 'dense'"),
        ({"states": 0, "outputs": 0}, "reads at least one state or output"),
        ({"width": 120}, f"a residual may have {MAX_NUMBERS:,} numbers, got 1"),
        ({"width": 0}, "width must be from 1 to"),
        ({"dimensions": 4}, "dimensions must be from 1 to 3, got 4"),
        ({"form": "token", "patch": 2}, "patch must be from 1 to 1, got 2"),
        ({"scales": [1.0, 0.0, 1.0]}, "scales must be 3 positive numbers"),
        ({"scales": [1.0, 1.0]}, "scales must be 3 positive numbers"),
    ],
)
def test_residuals_out_of_range_are_refused(arguments, message):
    usual = {"form": "convolution", "channels": 3, "states": 1, "outputs": 1, "width": 8}
    with pytest.raises(gas.UserError, match=message):
        gas.Residual(**(usual | arguments))


@pytest.mark.parametrize(
    ("config", "message"),
    [({"form": "token"}, "is not one: .*missing"), ({"colour": 1}, "is not one: .*unexpected keyword")],
)
def test_configs_that_are_none_are_refused(config, message):
    with pytest.raises(gas.UserError, match=message):
        gas.Residual.from_config(config)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 4), r"takes states \(B, 2, ..\) with 2 sizes, multiples of 2, got \(2, 3, 4, 4\)"),
        ((2, 2, 4, 5), "multiples of 2"),
        ((2, 2, 4), "with 2 sizes"),
    ],
)
def test_samples_of_another_form_are_refused(shape, message):
    table = lifted(table_named("ddim", NFE), [NFE - 1], patch=2)
    with pytest.raises(gas.UserError, match=message):
        gas.sample(network, torch.ones(shape), table)


def test_a_loop_that_forgets_to_correct_the_start_is_refused():
    stepper = gas.Stepper(lifted(table_named("ddim", NFE), [-1]))
    with pytest.raises(gas.UserError, match=r"call x = stepper.start\(x\) before the loop"):
        stepper.step(start(), start())
    with pytest.raises(gas.UserError, match=r"call x = stepper.start\(x\)"):
        stepper.again().step(start(), start())


SCHEDULE = gas.VPLinear()
CONSUMERS = {
    "unrolled": lambda table: table.unrolled(),
    "guided": lambda table: table.guided(2.0),
    "Gauss-Newton": numbers,
    "Gauss-Newton, steps": lambda table: measure_differences(network, start(), table),
    "Gauss-Newton, derivatives": lambda table: linearize(network, start(), table, None),
    "interpolation": lambda table: interpolated(SCHEDULE, table, table_named("ddim", 6), 5, 1e-3),
    "elimination": lambda table: without_row(table, 1),
    "BNS": lambda table: gas.BNS.from_table(SCHEDULE, table, 1e-3),
    "GeneralizedSolver": lambda table: gas.GeneralizedSolver.from_table(SCHEDULE, table, 1e-3),
    "S4S": lambda table: gas.S4S.from_table(SCHEDULE, table, 1e-3),
    "a range of guidance scales": lambda table: gas.learned.guidance.GuidanceBNS.from_table(
        SCHEDULE, table, 1e-3, scales=(1.0, 2.0), reference=1.0
    ),
    "a teacher of pairs": lambda table: pairs_fingerprint(
        gas.OwnModel(network, SCHEDULE, SHAPE[1:], name="toy"), table, gas.PairsSpec(range(2)), 2
    ),
}


@pytest.mark.parametrize("use", CONSUMERS)
def test_uses_that_need_sums_refuse_residuals(use):
    table = lifted(table_named("ddim", NFE), [1])
    with pytest.raises(
        gas.UserError, match=rf"{use.split(',')[0]} takes tables without residuals, got .* at rows 1"
    ):
        CONSUMERS[use](table)


def test_no_residual_reads_what_a_network_wrote_over():
    """Networks that work in place, or answer in one buffer; residuals at every row."""
    table, x = lifted(table_named("unipc-2-bh2", NFE), range(-1, NFE)).detach(), start()
    expected, buffer = gas.sample(network, x, table), torch.empty_like(x)

    def in_place(x, t):
        return x.add_(t).tanh_().mul_(0.9)

    def reused(x, t):
        return buffer.copy_(network(x, t))

    def spoils(x, t):
        d = network(x, t)
        x.mul_(1e3)
        return d

    for denoise in (in_place, reused, spoils):
        assert torch.equal(gas.sample(denoise, x, table), expected)
    with torch.inference_mode():
        assert torch.equal(gas.sample(in_place, x, table), expected)
    stepper = gas.Stepper(table)
    state = stepper.start(x)
    for t in stepper.times:
        earlier, state = state, stepper.step(state, reused(state, t))
        earlier.data.zero_()
    torch.testing.assert_close(state, expected)


def test_copies_for_residuals_are_dropped_after_the_last_of_them():
    stepper, x = gas.Stepper(lifted(table_named("ddim", NFE), [1])), start()
    held = []
    for t in stepper.times:
        x = stepper.step(x, network(x, t))
        held.append([len(part) for part in stepper._inputs])
    assert held == [[1, 1], [2, 2], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "wrong",
    [{"seed": 2**70}, {"seed": 1.5}, {"seed": None}, {"scales": "abc"}, {"scales": {}}, {"scales": [1, 2]}],
)
def test_a_wrong_seed_or_scale_is_one_line(wrong):
    with pytest.raises(gas.UserError, match=next(iter(wrong))):
        gas.Residual("token", channels=1, states=1, outputs=1, width=4, **wrong)


def test_copies_in_another_dtype_are_made_once_and_follow_the_numbers():
    lifted = residual(0, shape=(3, 2)).frozen()
    x = start(shape=(3, 2))
    first = lifted([x], [x])
    (weight, _), *_ = lifted._placed(x)
    assert weight.dtype == torch.float64 and lifted._placed(x)[0][0] is weight
    lifted.biases[-1].add_(1.0)
    torch.testing.assert_close(lifted([x], [x]), first + lifted.scales[-1])


def test_copies_made_in_inference_mode_serve_autograd():
    lifted, x = residual(0, shape=(3, 2)).frozen(), start(shape=(3, 2))
    with torch.inference_mode():
        expected = lifted([x], [x])
    output = lifted([x.clone().requires_grad_()], [x])
    output.sum().backward()
    torch.testing.assert_close(output.detach(), expected.clone())
