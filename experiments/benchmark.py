"""Measures speed beside other libraries, all in one interleaved run: tables, JSON, a picture.

python experiments/benchmark.py loss [--quick] [--options]

python experiments/benchmark.py step [--quick] [--options]

python experiments/benchmark.py compiled [--target v5e] [--options]

loss: the loss and its gradients beside autodiff, NumPyro, TFP, distrax and torch. step: the dVAE's
training step beside OpenAI's torch modules. Contestants run in turns; what is told are medians and
quartiles over many rounds, and ratios within a round. Where JAX or torch sees an accelerator it
runs there. compiled: bytes, kernels and FLOPs of each building block for a TPU or GPU, by its own
compiler and without the device.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse_command, quiet, run_script, say
from benchmarks import CompiledOptions, LossOptions, StepOptions, load


def main(args: list[str]) -> None:
    """Runs one suite, stores what it found, and prints its tables."""
    suites = {"loss": LossOptions, "step": StepOptions, "compiled": CompiledOptions}
    options = parse_command(suites, args, __doc__)
    suite = args[0]
    quiet()
    with one_line_errors(ValueError):
        options.check()
    picture, numbers, table = (options.out / f"{suite}.{end}" for end in ("png", "json", "md"))
    existing = [path for path in (picture, numbers, table) if path.exists()]
    if existing and not options.overwrite:
        fail(f"{existing[0]} exists; choose another --out folder, or add --overwrite")
    folder = next(f for f in (options.out, *options.out.parents) if f.exists())
    if not folder.is_dir():
        fail(f"{folder} is a file; choose another --out folder")
    # JAX and torch share an accelerator in turns: none may take all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from atlas import style
    from benchmarks import machine, plot

    from logit_laplace_jax.runs import directory

    described = machine.describe()
    with one_line_errors(ValueError):
        module = load(suite)
        result = module.run(options)
    result.machine |= described | {"load_end": machine.load()}
    options.out.mkdir(parents=True, exist_ok=True)
    directory.write_whole(numbers, result.json())
    directory.write_whole(table, result.markdown())
    with style.styled():
        style.save(getattr(module, "draw", plot.draw)(result), picture, dpi=200)
    say(result.markdown())
    for path in (numbers, table, picture):
        say(str(path))


if __name__ == "__main__":
    run_script(main)
