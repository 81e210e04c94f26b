"""Factors of learning rates."""

import pytest

from torchext.models import schedules


def test_constant_then_linear():
    factors = [schedules.constant_then_linear(epoch, 3, 4) for epoch in range(9)]
    assert factors == [1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert schedules.constant_then_linear(0, -1, 4) == 0.75


def test_exponential_and_steps():
    assert [schedules.exponential(n, 0.5, 1) for n in range(4)] == [1, 1, 0.5, 0.25]
    assert [schedules.steps(n, (2, 3), 0.1) for n in (0, 1, 2, 3, 9)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.01]
    )


def test_polynomial_behind_a_warm_up():
    def factor(n: int) -> float:
        return schedules.polynomial(n, 200, warm_up=100)

    assert factor(0) == pytest.approx(1e-3)
    assert factor(50) == pytest.approx(1e-3**0.5)
    assert factor(100) == 1
    assert factor(150) == pytest.approx(0.5**0.9)
    assert factor(200) == factor(300) == 0
