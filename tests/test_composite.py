"""A quadratic model of the numbers, and its least value over parameters that the numbers bend in."""

import pytest
import torch

from gas.optimizers.composite import least, slopes


@pytest.fixture
def model():
    """A slope and a positive definite curvature of four numbers."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return torch.randn(4, generator=generator, dtype=torch.float64), root @ root.T + 0.1 * torch.eye(4)


def value(numbers, p, start, slope, curvature):
    d = numbers(p) - numbers(start)
    return float(slope @ d + d @ curvature @ d / 2)


def test_where_numbers_are_the_parameters_it_is_the_newton_step(model):
    start = torch.arange(4, dtype=torch.float64)
    expected = start - torch.linalg.solve(model[1], model[0])
    torch.testing.assert_close(least(lambda p: 1 * p, start, *model, torch.arange(4)), expected)


def test_numbers_that_can_be_anything_end_at_the_minimum_however_they_bend(model):
    """Six parameters make four numbers, by exponentials and products: one linear step would miss by far."""

    def numbers(p):
        return torch.stack([p[0].exp(), p[1] * p[2].exp(), p[2] - p[3] ** 3, p[4] * p[5]])

    start = torch.tensor([0.1, 0.4, -0.2, 0.7, 1.0, 2.0], dtype=torch.float64)
    q = numbers(start)
    slope = -model[1] @ torch.tensor([0.8, -0.5, 0.4, 1.5], dtype=torch.float64)  # the minimum is that far
    reached = least(numbers, start, slope, model[1], torch.arange(6))
    torch.testing.assert_close(
        numbers(reached) - q, -torch.linalg.solve(model[1], slope), rtol=0.02, atol=0.02
    )
    chain = slopes(numbers, start)
    linear = start - torch.linalg.pinv(chain) @ torch.linalg.solve(model[1], slope)
    there = value(numbers, reached, start, slope, model[1])
    assert there < 0 and value(numbers, linear, start, slope, model[1]) > 0.9 * there


def test_on_a_curve_it_is_the_lowest_point_of_the_curve(model):
    def numbers(p):
        return torch.cat([p.sin(), p.cos(), p, p**2])

    start = torch.tensor([0.3], dtype=torch.float64)
    reached = least(numbers, start, *model, torch.arange(1))
    around = [start + move for move in torch.linspace(-2, 2, 4001, dtype=torch.float64)]
    lowest = min(value(numbers, p, start, *model) for p in around)
    assert value(numbers, reached, start, *model) == pytest.approx(lowest, rel=0.01)


def test_what_may_not_move_stays_and_what_is_no_table_is_not_entered(model):
    def numbers(p):
        if p[0] > 1.0:
            raise ValueError("no table")
        return torch.stack([p[0], p[1], p[0] * p[1], p[2]])

    start = torch.tensor([0.9, 1.0, 2.0], dtype=torch.float64)
    slope = torch.tensor([-50.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    reached = least(numbers, start, slope, torch.eye(4, dtype=torch.float64), torch.tensor([0, 2]))
    assert reached[1] == 1.0 and 0.9 <= reached[0] <= 1.0 and reached[2] > 2.0
    assert value(numbers, reached, start, slope, torch.eye(4, dtype=torch.float64)) < 0
