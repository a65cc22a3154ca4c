"""Schedules against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logit_laplace_jax.training.schedules import Schedule

# The paper's three schedules (Ramesh et al. 2021, appendix A.2), and others.
TABLE = [
    Schedule(0.0, 6.6, 5_000),
    Schedule(1.0, 1 / 16, 150_000),
    Schedule(1e-4, 1.25e-6, 1_200_000),
    Schedule(2.0, 2.0, 10),
    Schedule(3.0, -1.0, 8, shape="linear"),
    Schedule(0.5, 4.0, 1),
]


def closed_form(schedule, step):
    done = min(step / schedule.steps, 1.0)
    share = (1 - math.cos(math.pi * done)) / 2 if schedule.shape == "cosine" else done
    return schedule.start + (schedule.end - schedule.start) * share


@pytest.mark.parametrize("schedule", TABLE, ids=str)
def test_values(schedule):
    n = schedule.steps
    steps = [0, 1, n // 4, n // 2, 3 * n // 4, n - 1, n, n + 1, 10 * n]
    got = [float(schedule(step)) for step in steps]
    # float32: cos and three operations on numbers of the size of the larger end, each to 2**-24.
    size = max(abs(schedule.start), abs(schedule.end))
    np.testing.assert_allclose(
        got, [closed_form(schedule, s) for s in steps], rtol=0, atol=5e-7 * size
    )
    # The ends are no approximations.
    assert got[-3:] == [float(np.float32(schedule.end))] * 3


def test_half_cosine_is_flat_at_its_ends_and_steep_between():
    schedule = Schedule(1.0, 0.0, 100)
    values = np.array(schedule(jnp.arange(101)))
    slopes = -np.diff(values)
    assert (slopes >= 0).all()
    assert slopes[[0, -1]].max() < 0.001
    # Steepest in the middle: π/2 times that of the straight line.
    np.testing.assert_allclose(slopes[50], math.pi / 2 / 100, rtol=1e-3)


def test_no_steps_means_the_end_at_once():
    assert [float(Schedule(1.0, 0.25, 0)(step)) for step in (0, 1, 9)] == [0.25] * 3


def test_the_whole_run():
    open_ended = Schedule(1.0, 0.0)
    with pytest.raises(ValueError, match="over"):
        open_ended(3)
    assert open_ended.over(40) == Schedule(1.0, 0.0, 40)
    assert Schedule(1.0, 0.0, 7).over(40) == Schedule(1.0, 0.0, 7)
    assert Schedule(1.0, 0.0, 0).over(40) == Schedule(1.0, 0.0, 0)


def test_under_jit_and_vmap():
    schedule = Schedule(0.0, 6.6, 5_000)
    steps = jnp.arange(0, 6_000, 250, dtype=jnp.int32)
    plain = jnp.stack([schedule(step) for step in steps])
    assert plain.dtype == jnp.float32
    for transformed in (jax.jit(schedule), jax.vmap(schedule), jax.jit(jax.vmap(schedule))):
        # The compiled cosine may differ in its last bits; 6.6 * 2**-23.
        np.testing.assert_allclose(transformed(steps), plain, rtol=1e-6, atol=1e-6)


def test_updates_are_told_apart_late_in_the_longest_run():
    # 3,000,000 updates: steps in float32 are still exact, so no two neighbours coincide.
    schedule = Schedule(0.0, 1.0, 3_000_000, shape="linear")
    values = [float(schedule(jnp.int32(step))) for step in (1_499_999, 1_500_000, 1_500_001)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"steps": -1}, "steps must be 0 or more"), ({"shape": "square"}, "cosine or linear")],
)
def test_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Schedule(**{"start": 0.0, "end": 1.0, **wrong})
