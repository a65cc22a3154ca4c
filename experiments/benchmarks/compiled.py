"""What the compilers of TPUs and GPUs make of the library, beside its peers: bytes and kernels.

No device is needed, and nothing is timed: the same program gives the same numbers on any machine.
Bytes are those of memory traffic; the ideal reads each argument and writes each result once.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import CompiledOptions, blocks
from benchmarks.blocks import Block
from benchmarks.peers import Missing, one_line
from benchmarks.report import OURS, number
from logit_laplace_jax.runs import programs, targets


@dataclasses.dataclass
class Result:
    """All that was found, by block and contestant: plain JSON types."""

    target: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)

    def json(self) -> str:
        """Every number."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def markdown(self) -> str:
        """A table of all programs, and the largest kernels of whole steps."""
        lines = [
            f"**Programs for one {self.target}, by its own compiler**",
            "",
            "| work | who | MiB | x ideal | kernels | gathers | GFLOP | memory | roofline, ms |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in self.rows:
            head = f"| {row['title']} | {row['who']} |"
            if "error" in row:
                lines.append(f"{head} {row['error']} | | | | | | |")
                continue
            lines.append(
                f"{head} {row['bytes'] / 2**20:,.1f} | {row['bytes'] / row['ideal_bytes']:.2f} | "
                f"{row['kernels']} | {row['gathers']} | {number(row['flops'] / 1e9)} | "
                f"{row['memory'] / 2**20:,.0f} | {number(1e3 * row['roofline_seconds'])} |"
            )
        for row in self.rows:
            if row["block"].startswith("step") and "largest" in row:
                lines += ["", f"The largest kernels of {row['title']}, by bytes:", ""]
                lines += [
                    f"- {kernel['bytes'] / row['kernel_bytes']:.1%} {kernel['name']} "
                    f"({kernel['source']})"
                    for kernel in row["largest"]
                ]
        versions = ", ".join(f"{k} {v}" for k, v in self.machine.get("versions", {}).items())
        lines += ["", f"{versions}; commit {self.machine.get('commit')}"]
        return "\n".join(lines) + "\n"


def run(options: CompiledOptions) -> Result:
    """Compiles every block for the target, ours and its peers; what is known is not repeated."""
    target = options.target
    device = targets.devices(target, targets.TARGETS[target].smallest)[0]
    place = jax.sharding.SingleDeviceSharding(device)
    kept = _Kept(options.out / f"programs_{target}.json")
    rows = []
    for block in _chosen(options):
        ideal = block.ideal_bytes()
        for who, make in block.contestants.items():
            if who != OURS and options.ours:
                continue
            head = {"block": block.name, "title": block.title, "who": who, "ideal_bytes": ideal}
            try:
                rows.append(head | _measure(make(), block, place, target, kept))
            except Missing as error:
                rows.append(head | {"error": str(error)})
            except Exception as error:  # compilers fail in many ways; the others' rows are worth it
                rows.append(head | {"error": one_line(error)})
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k != "out"}
    return Result(target, settings, rows)


def _chosen(options: CompiledOptions) -> list[Block]:
    small = options.quick
    images = (2, 64, 64, 3) if small else (16, 256, 256, 3)
    features = (2, 32, 32, 32) if small else (8, 256, 256, 256)
    found = [*blocks.pixel_blocks(images), *blocks.network_blocks(features)]
    found.append(blocks.step_block(32, 8, 24, 1, 256))
    if options.paper:
        found.append(blocks.step_block(256, 8, 256, 2, 8192))
    if not options.blocks:
        return found
    names = [block.name for block in found]
    for word in options.blocks:
        if not any(word in name for name in names):
            raise ValueError(f"--blocks: no block is called {word}; there are {', '.join(names)}")
    return [block for block in found if any(word in block.name for word in options.blocks)]


class _Kept:
    """Results by program, in a file: a step's compilation can take an hour."""

    def __init__(self, path: Path):
        self._path = path
        self._known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, text: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        from logit_laplace_jax.runs.directory import write_whole

        key = hashlib.sha256(f"{jax.__version__}\n{text}".encode()).hexdigest()[:24]
        if key not in self._known:
            self._known[key] = make()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._known, indent=1) + "\n")
        found: dict[str, Any] = self._known[key]
        return found


def _measure(
    function: Callable[..., Any], block: Block, place: Any, target: str, kept: _Kept
) -> dict[str, Any]:
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), block.arguments
    )
    lowered = jax.jit(function, donate_argnums=block.donated).lower(*arguments)
    described = targets.TARGETS[target]
    return kept.get(lowered.as_text(), lambda: programs.facts(lowered.compile(), described))


def draw(result: Result) -> Any:
    """Bytes over the ideal: a bar for each program."""
    from atlas import style

    rows = [row for row in result.rows if "bytes" in row]
    figure, axes = style.panels(1, 1, 0.75 + 0.24 * len(rows))
    panel = axes[0, 0]
    for place, row in enumerate(rows):
        ratio = row["bytes"] / row["ideal_bytes"]
        panel.plot(ratio, place, "o", color=style.BLUE if row["who"] == OURS else style.SKY)
        note = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        panel.annotate(f"{ratio:.2f}", (ratio, place), **note)
    panel.axvline(1.0, color=style.BLACK, linewidth=0.7)
    labels = [
        row["block"] if row["who"] == OURS else f"{row['block']}: {row['who']}" for row in rows
    ]
    panel.set_yticks(range(len(rows)), labels)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xscale("log")
    panel.set_xlabel("bytes moved over the ideal")
    panel.set_title(f"Programs for one {result.target}, by its own compiler", loc="left")
    return figure
