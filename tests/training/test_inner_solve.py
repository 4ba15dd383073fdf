"""A quadratic model of the numbers, and its least value over parameters that the numbers bend in."""

import math

import pytest
import torch

from gas.training.inner_solve import minimize


@pytest.fixture
def model():
    """A gradient and a positive definite Hessian of four numbers."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return torch.randn(4, generator=generator, dtype=torch.float64), root @ root.T + 0.1 * torch.eye(4)


def value(numbers, p, start, gradient, hessian):
    d = numbers(p) - numbers(start)
    return float(gradient @ d + d @ hessian @ d / 2)


def test_where_numbers_are_the_parameters_it_is_the_newton_step(model):
    start = torch.arange(4, dtype=torch.float64)
    expected = start - torch.linalg.solve(model[1], model[0])
    torch.testing.assert_close(minimize(lambda p: 1 * p, start, *model, torch.arange(4)), expected)


def test_numbers_that_can_be_anything_end_at_the_minimum_however_they_bend(model):
    """Six parameters make four numbers, by exponentials and products: one linear step would miss by far."""

    def numbers(p):
        return torch.stack([p[0].exp(), p[1] * p[2].exp(), p[2] - p[3] ** 3, p[4] * p[5]])

    start = torch.tensor([0.1, 0.4, -0.2, 0.7, 1.0, 2.0], dtype=torch.float64)
    q = numbers(start)
    gradient = -model[1] @ torch.tensor([0.8, -0.5, 0.4, 1.5], dtype=torch.float64)  # the minimum is that far
    reached = minimize(numbers, start, gradient, model[1], torch.arange(6))
    torch.testing.assert_close(
        numbers(reached) - q, -torch.linalg.solve(model[1], gradient), rtol=0.02, atol=0.02
    )
    jacobian = torch.autograd.functional.jacobian(numbers, start)
    linear = start - torch.linalg.pinv(jacobian) @ torch.linalg.solve(model[1], gradient)
    minimum = value(numbers, reached, start, gradient, model[1])
    assert minimum < 0 and value(numbers, linear, start, gradient, model[1]) > 0.9 * minimum


def test_on_a_curve_it_is_the_lowest_point_of_the_curve(model):
    def numbers(p):
        return torch.cat([p.sin(), p.cos(), p, p**2])

    start = torch.tensor([0.3], dtype=torch.float64)
    reached = minimize(numbers, start, *model, torch.arange(1))
    around = [start + move for move in torch.linspace(-2, 2, 4001, dtype=torch.float64)]
    lowest = min(value(numbers, p, start, *model) for p in around)
    assert value(numbers, reached, start, *model) == pytest.approx(lowest, rel=0.01)


def test_what_may_not_move_stays_and_what_is_no_table_is_not_entered():
    def numbers(p):
        if p[0] > 1.0:
            raise ValueError("no table")
        return torch.stack([p[0], p[1], p[0] * p[1], p[2]])

    start = torch.tensor([0.9, 1.0, 2.0], dtype=torch.float64)
    gradient, hessian = torch.tensor([-50.0, 0.0, 0.0, -1.0]).double(), torch.eye(4, dtype=torch.float64)
    reached = minimize(numbers, start, gradient, hessian, torch.tensor([0, 2]))
    assert reached[1] == 1.0 and 0.999 < reached[0] <= 1.0 and reached[2] > 2.0
    edge = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    assert (
        value(numbers, reached, start, gradient, hessian)
        <= value(numbers, edge, start, gradient, hessian) + 1e-3
    )


@pytest.mark.parametrize(
    ("numbers", "free"),
    [
        (lambda p: 1 * p, []),
        (lambda p: 0 * p + 1.0, [0, 1, 2, 3]),
        (lambda p: torch.cat([p[:3], p[3:] * math.nan]), [0, 1, 2, 3]),
    ],
    ids=["nothing is free", "what is free moves nothing", "not finite"],
)
def test_where_nothing_can_be_gained_it_stays(model, numbers, free):
    start = torch.arange(4, dtype=torch.float64)
    assert torch.equal(minimize(numbers, start, *model, torch.tensor(free, dtype=torch.long)), start)


def test_a_model_that_is_flat_moves_nothing_and_a_parameter_without_effect_keeps_the_others_moving(model):
    start = torch.arange(4, dtype=torch.float64)
    flat = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    assert torch.equal(minimize(lambda p: 1 * p, start, *flat, torch.arange(4)), start)
    dead = minimize(lambda p: torch.cat([p[:3], 0 * p[3:]]), start, *model, torch.arange(4))
    gradient, hessian = model[0][:3], model[1][:3, :3]
    torch.testing.assert_close(dead[:3], start[:3] - torch.linalg.solve(hessian, gradient))
    assert dead[3] == start[3]
