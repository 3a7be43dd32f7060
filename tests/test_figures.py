"""Pictures: what is drawn is what was scored, every text can be read, and none is left over from an earlier scoring."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from faces import read_image

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import figures
import metrics
from labels import CANONICAL_NAMES, LABEL_SETS

TITLE = "E5_seed42: accuracy 0.632, macro F1 0.575 on val, 3589 rows"
FONT_MIN_PT = 9  # smaller letters cannot be read on a phone


class Drawn(NamedTuple):
    """A figure that was written, and where its texts were drawn: [x0, y0, x1, y1] in inches from the lower left corner."""

    figure: Figure
    texts: dict[Text, np.ndarray]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """The figures in the order in which they are written."""
    seen: list[Drawn] = []
    savefig, draw = Figure.savefig, Text.draw

    def watched_savefig(self: Figure, *args: Any, **options: Any) -> None:
        seen.append(Drawn(self, {}))
        savefig(self, *args, **options)

    def watched_draw(self: Text, renderer: Any) -> None:
        draw(self, renderer)
        figure = self.get_figure(root=True)
        if seen and seen[-1].figure is figure and self.get_visible() and self.get_text().strip():
            seen[-1].texts[self] = np.array(self.get_window_extent(renderer).extents) / figure.dpi

    monkeypatch.setattr(Figure, "savefig", watched_savefig)
    monkeypatch.setattr(Text, "draw", watched_draw)
    return seen


def assert_readable(figure: Figure, texts: dict[Text, np.ndarray]) -> None:
    """No text is small or cut off at the edge, and of those that are not rotated none overlaps another."""
    assert len(texts) > 10
    for text, box in texts.items():
        assert float(text.get_fontsize()) >= FONT_MIN_PT, text
        assert (box[:2] >= -0.01).all() and (box[2:] <= figure.get_size_inches() + 0.01).all(), (text, box)
    level = {text: box for text, box in texts.items() if text.get_rotation() == 0}
    for (one, first), (other, second) in combinations(level.items(), 2):
        shared = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])  # width and height
        assert shared.min() < 0.02, (one, other, shared)


def scored(label_set: str, rows: int = 600, seed: int = 0) -> dict[str, Any]:
    """The arguments of `write_pictures` for random answers over a label set."""
    names = LABEL_SETS[label_set].names
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, len(names), rows)
    logits = rng.normal(0, 1, (rows, len(names)))
    logits[np.arange(rows), y_true] += 1.2
    logits[:, 1] += 2.0 * (y_true == 0)  # so that one confusion exceeds
    probabilities = metrics.softmax(logits)
    affect_true = rng.uniform(-1, 1, (rows, 2))
    affect_true[::7, 0] = math.nan
    affect_pred = np.tanh(np.nan_to_num(affect_true) + rng.normal(0, 0.2, (rows, 2)))
    counts = metrics.confusion_counts(y_true, probabilities.argmax(axis=1), len(names))
    scores = metrics.classification_scores(y_true, probabilities.argmax(axis=1), probabilities, names)[0]
    scores |= metrics.affect_scores(affect_true, affect_pred)[0]
    return {
        "names": names, "counts": counts, "pattern": metrics.confusion_pattern_test(counts, names), "scores": scores,
        "y_true": y_true, "probabilities": probabilities, "affect_true": affect_true, "affect_pred": affect_pred,
        "image": lambda row: np.full((12, 12), row % 256, dtype=np.uint8), "title": TITLE, "split": "val", "model_name": "m",
    }  # fmt: skip


STEMS = (
    "confusion_matrix", "misclassification_heatmap", "confusion_residuals", "per_class", "misclassified", "affect_scatter",
    "affect_plane",
)  # fmt: skip


# All of them


@pytest.mark.parametrize("label_set", ["fer4", "fer7", "affectnet8"])
def test_every_picture_can_be_read(label_set: str, tmp_path: Path, written: list[Drawn]) -> None:
    figures.write_pictures(tmp_path, **scored(label_set))
    assert len(written) == len(STEMS)
    for figure, texts in written:
        assert_readable(figure, texts)
        said = " ".join(figure.get_suptitle().split())
        assert said.startswith(TITLE)
        width, height = figure.get_size_inches()
        assert 0.45 < width / height < 2.1
    names = {f"{stem}{suffix}.png" for stem in STEMS for suffix in ("", "_val")} | {"ConfusionMatrix_m.png"}
    assert {path.name for path in tmp_path.iterdir()} == names  # and nothing temporary
    for stem in STEMS:
        assert (tmp_path / f"{stem}.png").read_bytes() == (tmp_path / f"{stem}_val.png").read_bytes()
        assert read_image(tmp_path / f"{stem}.png").std() > 10


def test_what_does_not_belong_to_a_scoring_is_removed(tmp_path: Path) -> None:
    arguments = scored("fer4", rows=60)
    figures.write_pictures(tmp_path, **arguments)
    perfect = np.eye(4)[arguments["y_true"]]
    counts = np.diag(np.bincount(arguments["y_true"], minlength=4))
    arguments |= {"probabilities": perfect, "counts": counts, "affect_pred": None}
    arguments["pattern"] = metrics.confusion_pattern_test(counts, arguments["names"])
    figures.write_pictures(tmp_path, **arguments)
    left = {"confusion_matrix", "misclassification_heatmap", "per_class"}
    assert {path.name for path in tmp_path.iterdir()} == {"ConfusionMatrix_m.png"} | {
        f"{stem}{suffix}.png" for stem in left for suffix in ("", "_val")
    }


def test_a_long_title_is_wrapped(tmp_path: Path, written: list[Drawn]) -> None:
    arguments = scored("fer4") | {"title": "a_run_of_a_very_long_name_with_seed_42_and_more" + TITLE}
    figures.write_pictures(tmp_path, **arguments)
    for figure, texts in written:
        assert_readable(figure, texts)


# One by one


def test_names_are_no_formulas_and_may_have_any_letters(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with figures.picture([tmp_path / "a.png"], 5, 4, r"$\frac$ 笑顔.mp4") as figure:
        figure.subplots().set_title("$x$_")
    assert (tmp_path / "a.png").is_file() and not [each for each in recwarn if "Glyph" in str(each.message)]


def test_confusion_matrix_shows_both_matrices(tmp_path: Path, written: list[Drawn]) -> None:
    counts = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])
    figures.plot_confusion_matrix(counts, ("a", "b", "c"), title="t", paths=[tmp_path / "new" / "m.png", tmp_path / "n.png"])
    upper, lower = written[0].figure.axes
    assert [text.get_text() for text in upper.texts] == ["3", "1", "0", "0", "2", "2", "0", "0", "0"]
    assert [text.get_text() for text in lower.texts] == ["0.75", "0.25", "0.00", "0.00", "0.50", "0.50"]  # c has no rows
    assert (tmp_path / "new" / "m.png").read_bytes() == (tmp_path / "n.png").read_bytes()
    assert [label.get_text() for label in upper.get_yticklabels()] == ["a", "b", "c"]
    assert upper.get_ylim() == (3, 0)  # the first class is on top


def test_misclassification_heatmap_leaves_the_diagonal_out(tmp_path: Path, written: list[Drawn]) -> None:
    counts = np.array([[600, 400, 0], [2, 498, 0], [0, 0, 0]])
    figures.plot_misclassification_heatmap(counts, ("a", "b", "c"), title="t", paths=[tmp_path / "m.png"])
    (axis,) = written[0].figure.axes
    mesh: Any = axis.collections[0]
    np.testing.assert_array_equal(mesh.get_array().mask, [[True, False, False], [False, True, False], [True] * 3])
    assert mesh.get_clim() == (0, 0.4)  # up to the largest mistake
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (1.5, 0.5): "40", (2.5, 0.5): "0", (0.5, 1.5): "<1", (2.5, 1.5): "0",
    }  # fmt: skip
    assert to_hex(axis.get_facecolor()) == to_hex(figures.GREY)


def test_residuals_mark_what_the_test_found(tmp_path: Path, written: list[Drawn]) -> None:
    names = LABEL_SETS["fer7"].names
    counts = np.full((7, 7), 30)
    counts[2, 4] += 60
    pattern = metrics.confusion_pattern_test(counts, names)
    figures.plot_confusion_residuals(pattern, names, title="t", paths=[tmp_path / "r.png"])
    (axis,) = written[0].figure.axes
    shown = {text.get_position(): text.get_text() for text in axis.texts}
    assert len(shown) == 42
    assert [place for place, text in shown.items() if text.endswith("*")] == [(4.5, 2.5)]
    assert shown[4.5, 2.5] == f"{pattern.residuals[2, 4]:+.1f}*"
    assert shown[0.5, 2.5] == f"−{-pattern.residuals[2, 0]:.1f}"
    (frame,) = axis.patches
    assert frame.get_window_extent().contains(*axis.transData.transform((4.5, 2.5)))
    mesh: Any = axis.collections[0]
    low, high = mesh.get_clim()
    assert low == -high  # white is 0
    above, below = mesh.to_rgba([high, low])[:, :3]
    assert above[0] > above[2] and below[2] > below[0]  # orange and purple, never red and green


def test_text_contrasts_with_its_cell(tmp_path: Path, written: list[Drawn]) -> None:
    def luminance(colour: Any) -> float:  # of WCAG 2
        channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))

    figures.write_pictures(tmp_path, **scored("fer7"))
    for figure, _ in written[:3]:
        for axis in figure.axes:
            mesh: Any = axis.collections[0]
            for text, cell in zip(
                axis.texts, mesh.get_facecolors()[~np.ma.getmaskarray(mesh.get_array()).ravel()], strict=True
            ):
                light, dark = sorted((luminance(text.get_color()), luminance(cell)), reverse=True)
                assert (light + 0.05) / (dark + 0.05) > 4.4


def test_per_class_bars_and_means(tmp_path: Path, written: list[Drawn]) -> None:
    scores = {"recall_a": 0.5, "recall_b": 0.25, "recall_c": math.nan, "f1_a": 0.75, "f1_b": 0.0, "f1_c": math.nan}
    scores |= {"balanced_accuracy": 0.375, "macro_f1": 0.3755}
    figures.plot_per_class(scores, np.array([40, 8, 0]), ("a", "b", "c"), title="t", paths=[tmp_path / "p.png"])
    (axis,) = written[0].figure.axes
    assert [bar.get_width() for bar in axis.patches] == [0.5, 0.25, 0, 0.75, 0, 0]  # type: ignore[attr-defined]
    labels = [text.get_text() for text in axis.texts]
    assert labels == ["0.50", "0.25", "undefined", "0.75", "0.00", "undefined"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a\n40 rows", "b\n8 rows", "c\n0 rows"]
    assert [(line.get_xdata()[0], line.get_linestyle()) for line in axis.lines] == [(0.375, "--"), (0.3755, "--")]  # type: ignore[index]
    legend = [text.get_text() for text in written[0].figure.legends[0].get_texts()]
    assert legend == ["accuracy of the class", "balanced accuracy 0.375", "F1", "macro F1 0.376"]
    assert axis.yaxis_inverted()


def test_gallery_starts_with_the_most_confident_mistakes(tmp_path: Path, written: list[Drawn]) -> None:
    y_true = np.array([0, 1, 2, 0, 1])
    probabilities = np.array([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0], [0.04, 0.0, 0.96], [0.6, 0.4, 0.0]])
    asked = []

    def image(row: int) -> np.ndarray:
        asked.append(row)
        return np.full((4, 3, 3) if row == 2 else (4, 4), 10 * row, dtype=np.uint8)

    options: dict[str, Any] = {"title": "t", "paths": [tmp_path / "g.png"]}
    figures.plot_misclassified(image, y_true, probabilities, ("a", "b", "c"), **options)
    assert asked == [3, 2, 4, 0]  # the second is right
    axes = written[0].figure.axes
    titles = ["a 4.0% →\nc 96.0%", "c 0.0% →\na 90.0%", "b 40.0% →\na 60.0%", "a 20.0% →\nb 50.0%"]
    assert [axis.get_title() for axis in axes] == titles
    pixels = [np.asarray(axis.images[0].get_array()) for axis in axes]
    assert [int(picture.flat[0]) for picture in pixels] == [30, 20, 40, 0] and pixels[1].shape == (4, 3, 3)
    assert axes[0].images[0].get_clim() == (0, 255)  # a dark picture stays dark
    assert "4 of 4 misclassified faces" in written[0].figure.get_suptitle()
    figures.plot_misclassified(image, y_true, probabilities, ("a", "b", "c"), lines=1, columns=2, **options)
    assert asked[4:] == [3, 2] and "2 of 4" in written[1].figure.get_suptitle()
    figures.plot_misclassified(image, probabilities.argmax(axis=1), probabilities, ("a", "b", "c"), **options)
    assert not (tmp_path / "g.png").exists() and len(written) == 2


def test_affect_scatter(tmp_path: Path, written: list[Drawn]) -> None:
    true = np.array([[0.5, -0.5], [math.nan, 0.25], [-0.25, 0.0]])
    said = np.array([[0.25, -0.25], [0.5, 0.5], [1.5, math.nan]])
    scores = {"valence_ccc": 0.1234, "valence_rmse": 0.5, "arousal_ccc": math.nan, "arousal_rmse": 0.25}
    options: dict[str, Any] = {"title": "t", "paths": [tmp_path / "s.png"]}
    figures.plot_affect_scatter(true, said, scores, **options)
    left, right = written[0].figure.axes
    assert left.get_title() == "valence: CCC 0.123, RMSE 0.500" and right.get_title() == "arousal: CCC nan, RMSE 0.250"
    np.testing.assert_allclose(left.collections[0].get_offsets(), [[0.5, 0.25], [-0.25, 1.5]])  # type: ignore[arg-type]
    np.testing.assert_allclose(right.collections[0].get_offsets(), [[-0.5, -0.25], [0.25, 0.5]])  # type: ignore[arg-type]
    assert left.get_xlim()[1] > 1.5 and left.get_xlim() == left.get_ylim()  # nothing lies outside
    np.testing.assert_array_equal(left.lines[0].get_xdata(), left.lines[0].get_ydata())  # the identity
    figures.plot_affect_scatter(np.full((3, 2), math.nan), said, scores, **options)
    assert not (tmp_path / "s.png").exists() and len(written) == 1


def test_many_points_are_counted_in_hexagons(tmp_path: Path, written: list[Drawn]) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (figures.MANY_POINTS + 500, 2))
    scores = {f"{target}_{kind}": 0.5 for target in ("valence", "arousal") for kind in ("ccc", "rmse")}
    figures.plot_affect_scatter(true, true, scores, title="t", paths=[tmp_path / "s.png"])
    for axis in written[0].figure.axes:
        assert np.asarray(axis.collections[0].get_array()).sum() == len(true)


def test_affect_plane(tmp_path: Path, written: list[Drawn]) -> None:
    names = LABEL_SETS["fer4"].names
    true = np.array([[0.5, 0.5], [0.7, 0.1], [-0.5, 0.0], [math.nan, 0.3]])
    said = np.array([[0.1, 0.2], [0.3, 0.4], [-0.1, -0.2], [0.9, 0.9]])
    y_true = np.array([2, 2, 0, 1])
    figures.plot_affect_plane(true, said, y_true, names, title="t", paths=[tmp_path / "p.png"])
    for axis, points in zip(written[0].figure.axes, (true, said), strict=True):
        cloud: Any = axis.collections[0]
        drawn = {
            tuple(place): to_hex(colour) for place, colour in zip(cloud.get_offsets(), cloud.get_facecolors(), strict=True)
        }
        assert drawn == {tuple(points[row]): figures.COLOURS[names[y_true[row]]].lower() for row in range(3)}
        means = np.concatenate([np.asarray(large.get_offsets()) for large in axis.collections[2::2]])  # type: ignore[attr-defined]
        np.testing.assert_allclose(means[:2], [points[2], (points[0] + points[1]) / 2])
        circle = np.hypot(*axis.lines[2].get_data())
        np.testing.assert_allclose(circle, 1)
    legend = written[0].figure.legends[0]
    assert tuple(text.get_text() for text in legend.get_texts()) == names
    figures.plot_affect_plane(true * math.nan, said, y_true, names, title="t", paths=[tmp_path / "p.png"])
    assert not (tmp_path / "p.png").exists()


def test_classes_have_colours_of_their_own() -> None:
    assert set(figures.COLOURS) == set(CANONICAL_NAMES) and len(set(figures.COLOURS.values())) == len(CANONICAL_NAMES)
    # Red-blind and green-blind people see these two channels (Viénot, Brettel and Mollon 1999).
    for matrix in (
        [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    ):
        seen = [
            np.clip(np.dot(matrix, np.power(to_rgb(colour), 2.2)), 0, 1) ** (1 / 2.2) for colour in figures.COLOURS.values()
        ]
        distances = [float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2)]
        assert min(distances) > 0.14  # matplotlib's own colours come as near as 0.04


# Training curves


def line_of(epoch: int, **values: float | None) -> dict[str, Any]:
    return {"epoch": epoch, "lr": 0.1 / epoch, "train_loss": 2.0 / epoch, "val_loss": 3.0 / epoch, "accuracy": 0.3} | values


def test_history_has_a_panel_for_what_there_is(tmp_path: Path, written: list[Drawn]) -> None:
    history = [line_of(epoch, macro_f1=0.1 * epoch, train_accuracy=0.2) for epoch in (1, 2, 3)]
    figures.plot_history(history, tmp_path / "h.png", chosen_epoch=2, title="a")
    loss, score, rate = written[0].figure.axes
    assert [axis.get_ylabel() for axis in (loss, score, rate)] == ["loss", "score", "learning rate"]
    shown = ["training accuracy", "validation accuracy", "validation macro F1"]
    assert [line.get_label() for line in score.lines[:3]] == shown
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [3, 1.5, 1])  # type: ignore[arg-type]
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.05, 0.1 / 3])  # type: ignore[arg-type]
    assert rate.get_ylim()[0] == 0
    for axis in (loss, score, rate):
        assert list(axis.lines[-1].get_xdata()) == [2, 2]  # type: ignore[arg-type]
    assert "epoch 2" in written[0].figure.get_suptitle()
    assert_readable(*written[0])
    with_affect = [line | {"valence_ccc": 0.5, "arousal_ccc": None} for line in history]
    figures.plot_history(with_affect, tmp_path / "h.png", chosen_epoch=1, title="a")
    assert [axis.get_ylabel() for axis in written[1].figure.axes] == ["loss", "score", "validation CCC", "learning rate"]
    assert [line.get_label() for line in written[1].figure.axes[2].lines[:-1]] == ["valence"]  # arousal has no value
    assert_readable(*written[1])


def test_history_shows_the_loss_that_compares_and_where_pictures_grew(tmp_path: Path, written: list[Drawn]) -> None:
    history = [line_of(epoch, size_px=32 if epoch < 3 else 40, ferplus8_accuracy=0.7) for epoch in (1, 2, 3, 4)]
    history = [line | {"train_loss_cls": 1.0, "train_loss_votes": 9.0} for line in history]
    figures.plot_history(history, tmp_path / "h.png", chosen_epoch=4, title="a")
    loss, score = written[0].figure.axes[:2]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.0] * 4)  # type: ignore[arg-type]
    assert "validation accuracy by the votes" in [line.get_label() for line in score.lines]
    assert list(loss.lines[-1].get_xdata()) == [2.5, 2.5] and "32, 40 px" in written[0].figure.get_suptitle()  # type: ignore[arg-type]
    assert_readable(*written[0])


def test_history_leaves_gaps(tmp_path: Path, written: list[Drawn]) -> None:
    history = [line_of(1, macro_f1=0.1), line_of(2, macro_f1=None), line_of(3), line_of(4, macro_f1=math.nan, val_loss=None)]
    figures.plot_history(history, tmp_path / "h.png", chosen_epoch=1, title="a")
    loss, score = written[0].figure.axes[:2]
    np.testing.assert_array_equal(score.lines[1].get_ydata(), [0.1, math.nan, math.nan, math.nan])  # type: ignore[arg-type]
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), [3, 1.5, 1, math.nan])  # type: ignore[arg-type]
    assert read_image(tmp_path / "h.png").std() > 10
