"""Normal, Laplace, logistic, beta and logit-normal of equal mean and variance."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, matching, style
from _atlas.record import Record
from _atlas.settings import Settings

# Moments of a matched member that miss by more than this share count as no match.
TOLERANCE = 1e-6
FINE = 2000
NEAR_ENDS = (1e-6, 1e-3, 1.0 - 1e-3, 1.0 - 1e-6)

LINES = {
    "logit_laplace": {"color": style.BLACK, "linestyle": "-", "linewidth": 2.0},
    "beta": {"color": style.VERMILLION, "linestyle": style.DASHES[1]},
    "logit_normal": {"color": style.BLUE, "linestyle": style.DASHES[2], "linewidth": 1.8},
    "normal": {"color": style.ORANGE, "linestyle": style.DASHES[3]},
    "laplace": {"color": style.GREEN, "linestyle": style.DASHES[4]},
    "logistic": {"color": style.PURPLE, "linestyle": style.DASHES[5]},
}


def label(name: str) -> str:
    """The name of a family for people."""
    return "logit-Laplace" if name == "logit_laplace" else matching.FAMILIES[name].label


def window(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of the x axis that a case shows: mean ± 4.5 deviations, at most [-0.2, 1.2]."""
    reach = 4.5 * np.sqrt(variance)
    return np.maximum(mean - reach, -0.2), np.minimum(mean + reach, 1.2)


def compute(settings: Settings) -> Record:
    """Densities and cdfs [family, case, point], beyond both ends too, and how well the fits fit."""
    locs, scales = np.array(settings.cases).T
    log_scales = np.log(scales)
    moments = jax.jit(jax.vmap(lambda m, s: (ll.mean(m, s), ll.variance(m, s))))
    mean, variance = (np.asarray(moment) for moment in moments(locs, log_scales))
    # Every case has points of its own: what the picture shows, and more to compare the cdfs on.
    low, high = window(mean, variance)
    special = [mean, grids.sigmoid(locs), *(np.full(len(locs), x) for x in NEAR_ENDS)]
    x = np.sort(np.vstack([np.linspace(low, high, settings.points), *special]).T)
    both = np.hstack([x, np.linspace(low, high, FINE).T])

    def curves(function, points, *parameters):
        rows = jax.vmap(jax.vmap(function, (0, None, None)))
        return np.array(jax.jit(rows)(points, *parameters))

    def split(values):
        return np.split(values, [x.shape[1]], axis=1)

    density = [curves(lambda x, m, s: jnp.exp(ll.log_prob(x, m, s)), x, locs, log_scales)]
    exact, finely_exact = split(curves(ll.cdf, both, locs, log_scales))
    cdf = [exact]
    cases = [grids.tag(loc=m, b=b) for m, b in settings.cases]
    numbers = {
        case: {"mean": float(m), "variance": float(v), "families": {}}
        for case, m, v in zip(cases, mean, variance, strict=True)
    }
    notes = []
    for name, family in matching.FAMILIES.items():
        first, second = jax.jit(jax.vmap(family.match))(mean, variance)
        pdfs, cdfs = curves(family.pdf, x, first, second), curves(family.cdf, both, first, second)
        if family.bounded:
            pdfs[(x <= 0) | (x >= 1)] = 0.0
            cdfs[both <= 0], cdfs[both >= 1] = 0.0, 1.0
        cdfs, finely = split(cdfs)
        for i, case in enumerate(cases):
            a, b = float(first[i]), float(second[i])
            miss = _miss(name, a, b, float(mean[i]), float(variance[i]))
            if not miss < TOLERANCE:
                pdfs[i], cdfs[i] = np.nan, np.nan
                notes.append(f"no {family.label} was found with mean and variance of {case}")
                continue
            numbers[case]["families"][name] = {
                **dict(zip(family.names, (a, b), strict=True)),
                "mass outside (0, 1)": 0.0
                if family.bounded
                else float(matching.leaked(family, a, b)),
                "largest cdf difference": float(np.abs(finely[i] - finely_exact[i]).max()),
                "relative error of the moments": miss,
            }
        density.append(pdfs)
        cdf.append(cdfs)
    cube = ("family", "case", "point")
    return Record(
        axes={
            "family": np.array(["logit_laplace", *matching.FAMILIES]),
            "case": np.array(cases),
            "point": np.arange(x.shape[1]),
        },
        arrays={
            "x": (("case", "point"), x),
            "density": (cube, np.stack(density)),
            "cdf": (cube, np.stack(cdf)),
        },
        numbers=numbers,
        notes=tuple(notes),
    )


def _miss(name: str, first: float, second: float, mean: float, variance: float) -> float:
    """Largest relative error of mean and variance; only the logit-normal's come from a solver."""
    if name == "logit_normal":
        m, v, _ = matching.logit_normal_moments(first, second)
    elif name == "beta":
        total = first + second
        m, v = first / total, first * second / (total**2 * (total + 1.0))
    else:
        spread = {"normal": 1.0, "laplace": 2.0, "logistic": np.pi**2 / 3.0}[name]
        m, v = first, spread * second**2
    return float(max(abs(m / mean - 1.0), abs(v / variance - 1.0)))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= 1e-4 else "< 0.01 %"


def draw(record: Record) -> Figure:
    """A column a case: density above, cdf below."""
    cases = record["case"]
    figure, axes = style.panels(2, len(cases), 4.4, sharex="col")
    order = {name: k for k, name in enumerate(record["family"])}
    for j, case in enumerate(cases):
        numbers, x = record.numbers[case], record["x"][j]
        low, high = window(numbers["mean"], numbers["variance"])
        for name in sorted(order, key=list(LINES).index, reverse=True):
            k = order[name]
            line = {**LINES[name], "label": label(name)}
            bounded = name == "logit_laplace" or matching.FAMILIES[name].bounded
            density = np.where(bounded & ((x <= 0) | (x >= 1)), np.nan, record["density"][k, j])
            axes[0, j].plot(x, density, **line)
            axes[1, j].plot(x, record["cdf"][k, j], **line)
        loc, b = (part.partition("=")[2] for part in case.split())
        axes[0, j].set_title(
            f"μ = {style.number(float(loc))}, b = {b}\n"
            f"mean {numbers['mean']:.3g}, sd {numbers['variance'] ** 0.5:.3g}"
        )
        # The height leaves out the very ends, where densities may be unbounded.
        shown = (x >= low) & (x <= high)
        inner = shown & (x > 0.03) & (x < 0.97)
        heights = record["density"][:, j][:, inner if inner.any() else shown]
        axes[0, j].set_ylim(0, 1.08 * np.nanmax(heights))
        axes[0, j].set_xlim(low, high)
        axes[1, j].set_ylim(-0.02, 1.02)
        leak = "\n".join(
            f"{label(name)} {_percent(values['mass outside (0, 1)'])}"
            for name, values in numbers["families"].items()
            if not matching.FAMILIES[name].bounded
        )
        # In the corner that the cdf leaves free.
        early = np.interp(0.6 * low + 0.4 * high, x, record["cdf"][0, j]) > 0.6
        axes[1, j].text(
            0.97 if early else 0.03,
            0.05 if early else 0.97,
            f"outside (0, 1):\n{leak}",
            transform=axes[1, j].transAxes,
            ha="right" if early else "left",
            va="bottom" if early else "top",
            fontsize=6.5 if len(cases) < 4 else 5.5,
            linespacing=1.3,
        )
        axes[1, j].set_xlabel("x")
        for panel in axes[:, j]:
            for end in (0.0, 1.0):
                panel.axvline(end, color="0.75", linewidth=0.7, zorder=0)
    axes[0, 0].set_ylabel("density, per unit of x")
    axes[1, 0].set_ylabel("cdf, P(X ≤ x)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels))
    return figure
