"""Reading a compiled program's text."""

import pytest

from logit_laplace_jax.runs import programs

BODIES = """HloModule step
%small (p.0: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  ROOT %once = f32[8]{0} fusion(%p.0), kind=kLoop, calls=%add
}

%large (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %first = f32[8]{0} fusion(%p.1), kind=kLoop, calls=%add
  ROOT %second = f32[8]{0} fusion(%first), kind=kLoop, calls=%add
}

ENTRY %main (a: f32[8], n: s32[]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %n = s32[] parameter(1)
  ROOT %result = f32[8]{0} CALL
}
"""


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("while(%a), condition=%ends, body=%large", ["first", "second"]),
        ("call(%a), to_apply=%small", ["once"]),
        ("conditional(%n, %a, %a), branch_computations={%small, %large}", ["first", "second"]),
        ("conditional(%n, %a, %a), true_computation=%large, false_computation=%small", ["first"]),
        # What a kernel calls is inside it.
        ("fusion(%a), kind=kLoop, calls=%large", ["result"]),
        ("reduce(%a, %n), dimensions={0}, to_apply=%small", ["result"]),
    ],
)
def test_loops_and_branches_are_looked_into_and_kernels_are_not(call, names):
    found = programs.kernels(BODIES.replace("CALL", call))
    assert [kernel["name"] for kernel in found][: len(names)] == names
    if "result" not in names:
        # Reads and writes 32 bytes each.
        assert {kernel["bytes"] for kernel in found} == {64}
