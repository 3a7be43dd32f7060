"""Pictures of figures: confusions, classes, valence and arousal, training curves, and the faces that a network mistook.

Each function draws one picture and writes it to every path it is given, or removes what stands there where there is nothing
to draw. Colours are those that the colour-blind tell apart (Okabe and Ito 2008), sizes are for a phone's width.

    python -c "import figures; help(figures)"
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labels import CANONICAL_NAMES
from metrics import AFFECT_TARGETS, ConfusionPattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "0.87"
CURVES = (("-", BLUE), ("--", VERMILLION), (":", "0.2"), ("-.", ORANGE))  # of a panel, in order
OKABE_ITO = (VERMILLION, "#009E73", "#CC79A7", ORANGE, BLUE, "#F0E442", "#000000", "#56B4E9")
COLOURS = dict(zip(CANONICAL_NAMES, OKABE_ITO, strict=True))  # a class has its colour in every label set
MANY_POINTS = 2000  # more are drawn as hexagons, where single points would cover each other


@contextmanager
def picture(paths: Sequence[Path], width_in: float, height_in: float, title: str) -> Iterator["Figure"]:
    """A figure to draw on, under a title that is wrapped to its width; afterwards it is written as PNG to every path, each
    by way of a temporary name."""
    import matplotlib
    from matplotlib.figure import Figure  # not of pyplot: nothing to close
    from PIL import Image

    matplotlib.use("Agg")  # seaborn loads pyplot, which may be set to a window system that is not there
    plain_text = {"font.size": 11, "axes.titlesize": 11, "figure.titlesize": 11, "text.parse_math": False}  # no formulas
    with matplotlib.rc_context(plain_text), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from"
        )  # letters that no font here has are drawn as boxes
        figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
        figure.suptitle("\n".join(textwrap.fill(line, int(11 * width_in)) for line in title.split("\n")))
        yield figure
        png = io.BytesIO()
        figure.draw_without_rendering()  # lays out; the second time, when saving, no label is cut off any more
        figure.savefig(png, format="png")
    small = io.BytesIO()  # a palette of 256 colours takes a third of the room
    Image.open(png).convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(small.getvalue())
        temporary.replace(path)


def remove(paths: Sequence[Path]) -> None:
    """Remove pictures of an earlier scoring that do not belong to this one."""
    for path in paths:
        path.unlink(missing_ok=True)


def shares_of_true_class(counts: np.ndarray) -> np.ndarray:
    """Counts (C, C) as shares of their row; NaN for a class without rows."""
    rows = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, rows, out=np.full(counts.shape, np.nan), where=rows > 0)


def draw_matrix(axis: "Axes", values: np.ndarray, names: Sequence[str], **style: Any) -> None:
    """A heatmap of (C, C), true class downwards and predicted class to the right; cells of NaN stay grey."""
    import seaborn

    style = {"annot": True, "cmap": "Blues"} | style
    seaborn.heatmap(
        values, square=True, cbar=False, linewidths=0.5, ax=axis, xticklabels=list(names), yticklabels=list(names), **style
    )
    colours = axis.collections[0].to_rgba(values)  # (C, C, 4)
    for label in axis.texts:
        column, row = np.floor(label.get_position()).astype(int)
        luma = colours[row, column, :3] @ (0.2126, 0.7152, 0.0722)
        label.set_color("black" if luma > 0.46 else "white")  # where both contrast alike; seaborn's own choice is too pale
    axis.set(xlabel="predicted", ylabel="true", facecolor=GREY)
    axis.tick_params(axis="x", rotation=45)
    axis.tick_params(axis="y", rotation=0)


# Those of a scoring, whose files also bear the name of the split at their end.
PICTURES = (
    "confusion_matrix", "misclassification_heatmap", "confusion_residuals", "per_class", "misclassified", "affect_scatter",
    "affect_plane",
)  # fmt: skip


def write_pictures(
    folder: Path,
    names: Sequence[str],
    *,
    counts: np.ndarray,
    pattern: ConfusionPattern,
    scores: dict[str, float],
    y_true: np.ndarray,
    probabilities: np.ndarray,
    affect_true: np.ndarray,
    affect_pred: np.ndarray | None,
    image: Callable[[int], np.ndarray],
    title: str,
    split: str,
    model_name: str,
) -> None:
    """Every picture of a scoring, under its own name and under that of the split.

    `counts` (C, C) and `pattern` are those of metrics, `scores` the flat figures, the other arrays and `image` as below.
    """
    pictures: dict[str, Callable[..., None]] = {
        "confusion_matrix": partial(plot_confusion_matrix, counts, names),
        "misclassification_heatmap": partial(plot_misclassification_heatmap, counts, names),
        "confusion_residuals": partial(plot_confusion_residuals, pattern, names),
        "per_class": partial(plot_per_class, scores, counts.sum(axis=1), names),
        "misclassified": partial(plot_misclassified, image, y_true, probabilities, names),
        "affect_scatter": partial(plot_affect_scatter, affect_true, affect_pred, scores),
        "affect_plane": partial(plot_affect_plane, affect_true, affect_pred, y_true, names),
    }
    for stem in PICTURES:
        also = [f"ConfusionMatrix_{model_name}.png"] if stem == "confusion_matrix" else []
        paths = [folder / name for name in (f"{stem}.png", f"{stem}_{split}.png", *also)]
        pictures[stem](title=title, paths=paths)


# Classes


def plot_confusion_matrix(counts: np.ndarray, names: Sequence[str], *, title: str, paths: Sequence[Path]) -> None:
    """Confusion matrix as counts and below as shares of each true class: side by side they are too small on a telephone; the
    same picture to every path."""
    size = 1.6 + 0.62 * len(names)
    with picture(paths, size, 2 * size, title) as figure:
        upper, lower = figure.subplots(2, 1)
        draw_matrix(upper, counts, names, fmt="d")
        upper.set_title("rows")
        draw_matrix(lower, shares_of_true_class(counts), names, fmt=".2f", vmin=0.0, vmax=1.0)
        lower.set_title("share of the true class")


def plot_misclassification_heatmap(counts: np.ndarray, names: Sequence[str], *, title: str, paths: Sequence[Path]) -> None:
    """Confusions alone, as percent of each true class: the diagonal is left out, so that colours tell mistakes apart."""
    shares = shares_of_true_class(counts)
    np.fill_diagonal(shares, np.nan)
    largest = float(np.nanmax(shares, initial=0.0))
    percent = np.array([["<1" if 0 < share < 0.005 else f"{100 * share:.0f}" for share in row] for row in shares])
    size = 2.4 + 0.64 * len(names)
    with picture(paths, size, size, f"{title}\nmistakes, percent of the true class") as figure:
        draw_matrix(figure.subplots(), shares, names, annot=percent, fmt="", vmin=0.0, vmax=largest or 1.0)


def plot_confusion_residuals(pattern: ConfusionPattern, names: Sequence[str], *, title: str, paths: Sequence[Path]) -> None:
    """Adjusted residuals of `confusion_pattern_test` in standard errors: orange commoner, purple rarer than explained.

    A star and a frame mark the cells that exceed it significantly. Nothing to draw where the test is undefined.
    """
    from matplotlib.patches import Rectangle

    if pattern.undefined:
        remove(paths)
        return
    values = pattern.residuals
    starred = {(names.index(cell.true), names.index(cell.predicted)) for cell in pattern.excess}
    text = np.array([f"{value:+.1f}".replace("-", "−") for value in values.flat], dtype=object).reshape(values.shape)
    for cell in starred:
        text[cell] += "*"
    limit = float(np.nanmax(np.abs(values)).clip(3, 10))  # beyond, one cell would leave all others pale
    size = 2.4 + 0.7 * len(names)
    subject = "mistakes above (+) and below (−) what class totals explain, in standard errors (starred: significantly above)"
    with picture(paths, size, size + 0.4, f"{title}\n{subject}") as figure:
        axis = figure.subplots()
        draw_matrix(axis, values, names, annot=text, fmt="", cmap="PuOr_r", vmin=-limit, vmax=limit)
        for i, j in starred:
            axis.add_patch(Rectangle((j + 0.04, i + 0.04), 0.92, 0.92, fill=False, linewidth=2))


def plot_per_class(
    scores: dict[str, float], rows: np.ndarray, names: Sequence[str], *, title: str, paths: Sequence[Path]
) -> None:
    """Accuracy within each class (its recall) and F1 as bars, with their macro means, from the flat scores.

    `rows` (C,) are the rows of each class. An undefined score has no bar.
    """
    with picture(paths, 7, 2.1 + 0.62 * len(names), title) as figure:
        axis = figure.subplots()
        places = np.arange(len(names))
        handles: list[Any] = []
        for kind, label, mean, colour, dark, offset in (
            ("recall", "accuracy of the class", "balanced_accuracy", BLUE, "#00334F", -0.2),
            ("f1", "F1", "macro_f1", ORANGE, "#7A5400", 0.2),
        ):
            values = np.array([scores[f"{kind}_{name}"] for name in names])
            bars = axis.barh(places + offset, np.nan_to_num(values), height=0.38, color=colour, label=label)
            text = ["undefined" if np.isnan(value) else f"{value:.2f}" for value in values]
            over_lines = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            axis.bar_label(bars, text, padding=3, bbox=over_lines, zorder=4)
            line = axis.axvline(scores[mean], color=dark, linestyle="--", linewidth=1.8, zorder=3)
            line.set_label(f"{mean.replace('_', ' ').replace('f1', 'F1')} {scores[mean]:.3f}")
            handles += [bars, line]
        axis.set_yticks(places, [f"{name}\n{number} rows" for name, number in zip(names, rows, strict=True)])
        axis.set(xlim=(0, 1.1), xticks=np.linspace(0, 1, 6))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def plot_misclassified(
    image: Callable[[int], np.ndarray],
    y_true: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    *,
    title: str,
    paths: Sequence[Path],
    lines: int = 6,
    columns: int = 4,
) -> None:
    """The misclassified faces with the truth, the prediction and the probability of each, the most confident mistakes first.

    `image` gives a row's picture, RGB (H, W, 3) or grey (H, W) uint8; `y_true` (N,) and `probabilities` (N, C) are those of
    the rows. Nothing to draw where all are right.
    """
    confidence, y_pred = probabilities.max(axis=1), probabilities.argmax(axis=1)  # (N,) each
    wrong = np.flatnonzero(y_pred != y_true)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][: lines * columns]
    if not len(chosen):
        remove(paths)
        return
    lines = -(-len(chosen) // columns)
    subject = f"{len(chosen)} of {len(wrong)} misclassified faces, true → predicted"
    with picture(paths, 1.75 * columns, 0.7 + 2.05 * lines, f"{title}\n{subject}") as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, row in zip(axes, chosen, strict=False):
            axis.imshow(image(int(row)), cmap="gray", vmin=0, vmax=255)
            true = y_true[row]
            said = f"{names[true]} {probabilities[row, true]:.1%} →\n{names[y_pred[row]]} {confidence[row]:.1%}"
            axis.set_title(said, fontsize=10)


# Valence and arousal


def frame(axis: "Axes", reach: float) -> None:
    """Show a square from −reach to reach, at least the −1..1 of the labels."""
    ticks = np.linspace(-1, 1, 5)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=ticks, yticks=ticks, aspect="equal")


def plot_affect_scatter(
    affect_true: np.ndarray,
    affect_pred: np.ndarray | None,
    scores: dict[str, float],
    *,
    title: str,
    paths: Sequence[Path],
) -> None:
    """Valence and arousal, predicted against true, with the identity line, CCC and RMSE of the flat scores.

    Both arrays are (N, 2), NaN where a label is missing. Nothing to draw without labels or for a network without this head.
    """
    if affect_pred is None or np.isnan(affect_true).all():
        remove(paths)
        return
    with picture(paths, 8.4, 4.6, title) as figure:
        for column, (axis, target) in enumerate(zip(figure.subplots(1, 2), AFFECT_TARGETS, strict=True)):
            known = np.isfinite(affect_true[:, column]) & np.isfinite(affect_pred[:, column])
            true, said = affect_true[known, column], affect_pred[known, column]
            reach = 1.05 * np.abs([*true, *said, 1.0]).max()
            if len(true) > MANY_POINTS:
                extent = (-reach, reach, -reach, reach)
                axis.hexbin(true, said, gridsize=35, bins="log", mincnt=1, cmap="cividis_r", extent=extent, linewidths=0.2)
            else:
                axis.scatter(true, said, s=12, alpha=0.5, color=BLUE, linewidths=0)
            axis.plot([-reach, reach], [-reach, reach], "--", color=VERMILLION, linewidth=1.8)
            name = f"{target}: CCC {scores[f'{target}_ccc']:.3f}, RMSE {scores[f'{target}_rmse']:.3f}"
            axis.set(xlabel="true", ylabel="predicted", title=name)
            axis.grid(alpha=0.3)
            frame(axis, reach)


def plot_affect_plane(
    affect_true: np.ndarray,
    affect_pred: np.ndarray | None,
    y_true: np.ndarray,
    names: Sequence[str],
    *,
    title: str,
    paths: Sequence[Path],
) -> None:
    """The valence–arousal plane (Russell 1980) as labelled and as predicted, side by side, in the colours of the true class.

    Arrays are (N, 2), (N, 2) and (N,); rows without both labels are left out. The large points are the means of the classes.
    Nothing to draw without labels or for a network without this head.
    """
    known = np.isfinite(affect_true if affect_pred is None else affect_true + affect_pred).all(axis=1)  # (N,)
    if affect_pred is None or not known.any():
        remove(paths)
        return
    mixed = np.random.default_rng(0).permutation(np.flatnonzero(known))  # no class lies on top of another
    colours = np.array([COLOURS.get(name, GREY) for name in names])
    reach = 1.05 * np.abs([*affect_true[known].ravel(), *affect_pred[known].ravel(), 1.0]).max()
    subject = "colour: true class, large point: its mean"
    with picture(paths, 8.4, 5.0 + 0.25 * -(-len(names) // 4), f"{title}\n{subject}") as figure:
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, affect, name in zip(axes, (affect_true, affect_pred), ("as labelled", "as predicted"), strict=True):
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.axvline(0, color="0.6", linewidth=0.8)
            turn = np.linspace(0, 2 * np.pi, 200)
            axis.plot(np.cos(turn), np.sin(turn), color="0.6", linewidth=0.8)
            size = 18 if len(mixed) <= MANY_POINTS else 9
            style = {"alpha": 0.7, "edgecolors": "0.2", "linewidths": 0.2}
            axis.scatter(*affect[mixed].T, s=size, c=colours[y_true[mixed]], **style)
            for c in np.unique(y_true[mixed]):
                mean = affect[mixed][y_true[mixed] == c].mean(axis=0)
                axis.scatter(*mean, s=160, color="white", zorder=3)
                axis.scatter(*mean, s=90, color=colours[c], edgecolors="black", linewidths=1.2, zorder=3)
            axis.set(xlabel="valence", title=name)
            frame(axis, reach)
        axes[0].set_ylabel("arousal")
        for name, colour in zip(names, colours, strict=True):
            axes[0].scatter([], [], s=90, color=colour, edgecolors="black", label=name)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)


# Training


def plot_history(history: Sequence[dict[str, float]], path: Path, *, chosen_epoch: int, title: str) -> None:
    """Training curves over the epochs: loss, accuracy and macro F1, CCC where there is one, learning rate.

    `history` has a flat dict an epoch; a score that is missing, None or NaN leaves a gap. The chosen epoch is marked, and
    where the pictures grew (`size_px`). The training loss is without that of the votes, which validation does not count.
    """
    from matplotlib.ticker import MaxNLocator

    loss = {"train_loss_cls": "training, labels alone"} if "train_loss_votes" in history[-1] else {"train_loss": "training"}
    panels = {
        "loss": loss | {"val_loss": "validation"},
        "score": {
            "train_accuracy": "training accuracy",
            "accuracy": "validation accuracy",
            "macro_f1": "validation macro F1",
            "ferplus8_accuracy": "validation accuracy by the votes",
        },
        "validation CCC": {f"{target}_ccc": target for target in AFFECT_TARGETS},
        "learning rate": {"lr": "learning rate", "backbone_lr": "the backbone's"},
    }
    epochs = [line["epoch"] for line in history]
    curves = {
        key: np.array([line.get(key) for line in history], dtype=np.float64) for panel in panels.values() for key in panel
    }  # None becomes NaN
    shown = {name: panel for name, panel in panels.items() if any(np.isfinite(curves[key]).any() for key in panel)}
    subject = f"grey line: epoch {chosen_epoch}, the chosen one"
    sizes = [line.get("size_px") for line in history]
    grown = [epoch for epoch, size, before in zip(epochs[1:], sizes[1:], sizes[:-1], strict=True) if size != before]
    if grown:
        subject += f"; dotted: pictures of {', '.join(str(size) for size in dict.fromkeys(sizes))} px"
    with picture([path], 7.5, 1.0 + 2.3 * len(shown), f"{title}\n{subject}") as figure:
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False).ravel()
        for axis, (name, panel) in zip(axes, shown.items(), strict=True):
            for (key, label), (style, colour) in zip(panel.items(), CURVES, strict=False):
                if np.isfinite(curves[key]).any():
                    marker = "." if len(epochs) < 40 else None
                    axis.plot(epochs, curves[key], style, marker=marker, color=colour, label=label)
            axis.axvline(chosen_epoch, color="0.5", linewidth=1)
            for epoch in grown:
                axis.axvline(epoch - 0.5, color="0.5", linewidth=1, linestyle=":")
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
            if name == "learning rate":
                axis.set_ylim(bottom=0)  # so that a rate that stays looks like one
            if np.sum([np.isfinite(curves[key]).any() for key in panel]) > 1:
                # above the panel: inside, it covers a curve of a few epochs
                axis.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        figure.align_ylabels(axes)
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
