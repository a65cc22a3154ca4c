"""The command line: argparse, because lean GPU images have no tyro."""

import argparse
from pathlib import Path
from typing import NoReturn

from _bench import SUITES
from _cli import fail


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        fail(message)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def size(text: str) -> tuple[int, int]:
    """``SIDE:BATCH`` as two numbers.

    >>> size("64:16")
    (64, 16)
    """
    side, _, batch = text.partition(":")
    try:
        return positive(side), positive(batch)
    except ValueError:
        raise argparse.ArgumentTypeError(f"give SIDE:BATCH, such as 32:32, not {text}") from None


def parse(args: list[str]) -> argparse.Namespace:
    """Reads the command line; a mistake ends the script."""
    suites = "\n".join(f"  {name:<9}{what}" for name, what in SUITES.items())
    parser = _Parser(
        prog="benchmark.py",
        description="Measures speed beside other libraries: contestants interleaved in one run, "
        "medians and quartiles over many rounds, ratios paired by rounds.\n\n" + suites,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, what in SUITES.items():
        own = subparsers.add_parser(name, description=what, help=what, formatter_class=_Help)
        _common(own, name)
        _OWN[name](own)
    options = parser.parse_args(args)
    if options.rounds is None:
        options.rounds = _ROUNDS[options.suite][options.quick]
    if options.suite == "step" and options.sizes is None:
        options.sizes = [(32, 8)] if options.quick else [(32, 32), (64, 16), (128, 8)]
    return options


_ROUNDS = {"loss": (40, 7), "step": (15, 3)}
"""Rounds by default, full and with --quick."""


def _common(parser: argparse.ArgumentParser, suite: str) -> None:
    full, quick = _ROUNDS[suite]
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller measurements: a look, not a result"
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        metavar="N",
        help=f"times that every contestant is measured; None: {full}, with --quick {quick}",
    )
    parser.add_argument(
        "--least-sample",
        type=above_zero,
        default=0.005,
        metavar="SECONDS",
        help="shortest sample: short work is repeated until it takes this long",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the inputs and the order in a round"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables as Markdown, for a README"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every sample; must not exist"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw .png, .svg or .pdf; must not exist"
    )


def _loss(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="images; None: 16 on a CPU (4 with --quick), 256 on an accelerator",
    )
    parser.add_argument(
        "--side", type=positive, default=256, metavar="PIXELS", help="height and width of an image"
    )
    parser.add_argument(
        "--inner",
        type=positive,
        default=8,
        metavar="N",
        help="evaluations inside one jitted step, for the sections with kept buffers",
    )


def _step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=size,
        nargs="+",
        metavar="SIDE:BATCH",
        help="pixels a side and images a step; None: 32:32 64:16 128:8, with --quick 32:8",
    )
    parser.add_argument("--n-hid", type=positive, default=64, metavar="N", help="width, from 64 on")
    parser.add_argument(
        "--blocks", type=positive, default=2, metavar="N", help="residual blocks in a group"
    )
    parser.add_argument("--vocab", type=positive, default=1024, metavar="N", help="codes, from 512")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="arithmetic of the networks, in both libraries",
    )
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="measure the torch modules in torch's NHWC memory format too",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes"
    )
    parser.add_argument(
        "--peak-tflops",
        type=above_zero,
        metavar="TFLOP/S",
        help="the device's peak, for the share of it that is used; None: by the device's name if "
        "known, else left out",
    )
    parser.epilog = (
        "The paper's model on a GPU: --n-hid 256 --vocab 8192 --precision bfloat16 --sizes 256:8. "
        "Where JAX or torch sees an accelerator it runs there; JAX_PLATFORMS=cpu and "
        "CUDA_VISIBLE_DEVICES= keep both from it."
    )


_OWN = {"loss": _loss, "step": _step}
