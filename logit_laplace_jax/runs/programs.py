"""What a program compiled for a TPU or a GPU says of itself: traffic, kernels, FLOPs, memory.

Where the compiler counts bytes itself (TPUs) its count is told, else (GPUs) that of the operands
and results of the entry computation's kernels. The roofline time is the larger of the bytes over
the bandwidth and the FLOPs over the peak.
"""

import re
from typing import Any

from logit_laplace_jax.runs.targets import Target

_LARGEST = 10
"""Kernels that are listed of a program."""

_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"})
"""Instructions that move nothing."""

_CALLS = frozenset({"while", "call", "conditional"})
"""Instructions that run other computations; of branches the one that moves most."""

_CALLED = re.compile(
    r"(?:body|to_apply|true_computation|false_computation|branch_computations)=({[^}]*}|%[\w.\-]+)"
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*{$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(?.*?\)?) ([\w\-]+)\((.*)")
_SHAPE = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16}


def facts(compiled: Any, target: Target) -> dict[str, Any]:
    """What a compiled program says of itself."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    text = compiled.as_text()
    found = kernels(text)
    kernel_bytes = sum(kernel["bytes"] for kernel in found)
    moved = float(analysis.get("bytes accessed") or kernel_bytes)
    flops = float(analysis.get("flops") or 0.0)
    memory = compiled.memory_analysis()
    found.sort(key=lambda kernel: -kernel["bytes"])
    return {
        "bytes": moved,
        "kernel_bytes": kernel_bytes,
        "flops": flops,
        "kernels": len(found),
        "gathers": len(re.findall(r"\bgather\(", text)),
        "memory": int(memory.temp_size_in_bytes + memory.argument_size_in_bytes),
        "optimal_seconds": float(analysis.get("optimal_seconds") or 0.0),
        "roofline_seconds": max(moved / target.bandwidth, flops / target.peak),
        "largest": found[:_LARGEST],
    }


def kernels(text: str) -> list[dict[str, Any]]:
    """The instructions of a program that move memory; those inside a loop once.

    >>> program = '''ENTRY %main (a: f32[8]) -> f32[8] {
    ...   %a = f32[8]{0} parameter(0)
    ...   ROOT %f = f32[8]{0} fusion(%a), kind=kLoop, metadata={op_name="jit(f)/add"}
    ... }'''
    >>> kernels(program)
    [{'name': 'f', 'kind': 'fusion', 'bytes': 64, 'source': 'jit(f)/add'}]
    """
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match.group(2), [])
            entry = match.group(2) if match.group(1) else entry
        elif computations:
            current.append(line)
    return _moving(entry, computations)


def _moving(name: str, computations: dict[str, list[str]]) -> list[dict[str, Any]]:
    sizes: dict[str, int] = {}
    found = []
    for line in computations.get(name, ()):
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        instruction, shape, kind, rest = match.groups()
        sizes[instruction] = _bytes(shape)
        if kind in _FREE:
            continue
        called = _CALLED.findall(rest) if kind in _CALLS else ()
        if called:
            inner = [_moving(n, computations) for n in re.findall(r"[\w.\-]+", " ".join(called))]
            found += max(inner, key=lambda rows: sum(row["bytes"] for row in rows))
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(
            {
                "name": instruction,
                "kind": kind,
                "bytes": sizes[instruction] + sum(sizes.get(operand, 0) for operand in operands),
                "source": source.group(1) if source else "",
            }
        )
    return found


def _bytes(shape: str) -> int:
    total = 0
    for dtype, sizes in _SHAPE.findall(shape):
        bits = _BITS.get(dtype) or int(re.sub(r"\D.*$", "", dtype.lstrip("abcdefu s")) or 32)
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * bits // 8
    return total
