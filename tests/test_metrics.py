"""Every score against a value worked out by hand, against a slow reference in plain Python, and where it is undefined."""

import json
import math
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2, norm, pearsonr, poisson
from sklearn import metrics as sk

import metrics
from labels import LABEL_SETS

pytestmark = pytest.mark.filterwarnings("error")  # a division by zero on the way to NaN is not a decision
SEEDS = range(12)

# Six faces of three classes. Counts, rows true: angry 1 1 0, happy 1 2 0, sad 0 1 0.
NAMES = ("angry", "happy", "sad")
Y_TRUE = np.array([0, 0, 1, 1, 1, 2])
Y_PRED = np.array([0, 1, 1, 1, 0, 1])
PROBABILITIES = np.array(
    [[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.2, 0.6, 0.2], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.2, 0.5, 0.3]],
)
BY_HAND = {
    "accuracy": 3 / 6,
    "balanced_accuracy": (1 / 2 + 2 / 3 + 0) / 3,
    "macro_f1": (1 / 2 + 4 / 7 + 0) / 3,
    "f1_angry": 2 / (2 + 1 + 1),
    "f1_happy": 4 / (4 + 2 + 1),
    "f1_sad": 0.0,  # a true row, never predicted
    "precision_angry": 1 / 2,
    "precision_happy": 2 / 4,
    "precision_sad": math.nan,  # 0 / 0
    "recall_angry": 1 / 2,
    "recall_happy": 2 / 3,
    "recall_sad": 0.0,
    "cohen_kappa": 0.1,  # p_o = 18/36, p_e = (2·2 + 3·4 + 1·0) / 36 = 16/36
    # pairs won: angry 4 + 2.5 of 8 (0.3 ties with 0.3), happy 3 + 3 + 1 of 9, sad 5 of 5
    "roc_auc_macro": (6.5 / 8 + 7 / 9 + 1) / 3,
    # angry ½·1 (at 0.6) + ½·2/4 (at 0.3, four rows); happy ⅔·1 (at 0.6) + ⅓·3/5 (at 0.4, five rows); sad 1
    "pr_auc_macro": (3 / 4 + 13 / 15 + 1) / 3,
    # twelve values, 4 angry 7 happy 1 sad: D_e = 1 − (12 + 42 + 0) / 132 = 78/132, D_o = 66/132
    "krippendorff_alpha": 1 - 66 / 78,
}


# Slow references


def roc_auc_by_pairs(positive, scores):
    """Share of (positive, negative) pairs in which the positive has the higher score, ties counting half."""
    wins = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i, j in product(range(len(scores)), repeat=2)
        if positive[i] and not positive[j]
    ]
    return sum(wins) / len(wins) if wins else math.nan


def average_precision_by_thresholds(positive, scores):
    """Σ (R_k − R_{k−1}) P_k, the threshold going down through the distinct scores."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for p, score in zip(positive, scores, strict=True) if score >= threshold]
        recall = sum(taken) / sum(positive)
        area += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return area


def alpha_by_pairs(true, predicted):
    """1 − (disagreement within rows) / (disagreement over all pairs of the pooled values)."""
    pooled = list(true) + list(predicted)
    pairs = list(combinations(pooled, 2))
    expected = sum(a != b for a, b in pairs) / len(pairs)
    observed = sum(a != b for a, b in zip(true, predicted, strict=True)) / len(true)
    return 1 - observed / expected if expected else math.nan


def kappa_by_pairs(true, predicted):
    """Chance agreement as the share of all (truth of one row, prediction of any row) pairs that agree."""
    rows = list(zip(true, predicted, strict=True))
    observed = sum(t == p for t, p in rows) / len(rows)
    chance = sum(t == p for t, p in product(true, predicted)) / len(rows) ** 2
    return (observed - chance) / (1 - chance) if chance != 1 else math.nan


def ccc_by_sums(true, predicted):
    n = len(true)
    true_mean, predicted_mean = sum(true) / n, sum(predicted) / n
    covariance = sum((t - true_mean) * (p - predicted_mean) for t, p in zip(true, predicted, strict=True)) / n
    true_variance = sum((t - true_mean) ** 2 for t in true) / n
    predicted_variance = sum((p - predicted_mean) ** 2 for p in predicted) / n
    return 2 * covariance / (true_variance + predicted_variance + (true_mean - predicted_mean) ** 2)


def sagr_by_cases(true, predicted):
    same = [(t > 0 and p > 0) or (t < 0 and p < 0) or (t == 0 and p == 0) for t, p in zip(true, predicted, strict=True)]
    return sum(same) / len(same)


def classification_by_loops(true, predicted, probabilities, names):
    """All scores of `classification_scores`, by counting rows."""
    rows, scores = list(zip(true, predicted, strict=True)), {}
    present = [c for c in range(len(names)) if c in true]
    for c, name in enumerate(names):
        tp = sum(t == c and p == c for t, p in rows)
        fp = sum(t != c and p == c for t, p in rows)
        fn = sum(t == c and p != c for t, p in rows)
        scores[f"precision_{name}"] = tp / (tp + fp) if tp + fp else math.nan
        scores[f"recall_{name}"] = tp / (tp + fn) if c in present else math.nan
        scores[f"f1_{name}"] = 2 * tp / (2 * tp + fp + fn) if c in present else math.nan
    positives = {c: [int(t == c) for t in true] for c in present}
    columns = {c: [row[c] for row in probabilities] for c in present}
    return scores | {
        "accuracy": sum(t == p for t, p in rows) / len(rows),
        "balanced_accuracy": sum(scores[f"recall_{names[c]}"] for c in present) / len(present),
        "macro_f1": sum(scores[f"f1_{names[c]}"] for c in present) / len(present),
        "cohen_kappa": kappa_by_pairs(true, predicted),
        "roc_auc_macro": sum(roc_auc_by_pairs(positives[c], columns[c]) for c in present) / len(present),
        "pr_auc_macro": sum(average_precision_by_thresholds(positives[c], columns[c]) for c in present) / len(present),
        "krippendorff_alpha": alpha_by_pairs(true, predicted),
    }


def quasi_independence_by_newton(mistakes):
    """Poisson regression log E_ij = a_i + b_j off the diagonal, by Newton's method: cells, design, E and leverage.

    Rows and columns that sum to 0 are left out.
    """
    size = len(mistakes)
    cells = [
        (i, j) for i, j in product(range(size), repeat=2) if i != j and mistakes[i].sum() > 0 and mistakes[:, j].sum() > 0
    ]
    design = np.zeros((len(cells), 2 * size))
    for k, (i, j) in enumerate(cells):
        design[k, i] = design[k, size + j] = 1
    observed = np.array([float(mistakes[cell]) for cell in cells])
    fitted = observed + 0.5
    for _ in range(60):  # iteratively reweighted least squares
        working = np.log(fitted) + (observed - fitted) / fitted
        root = np.sqrt(fitted)
        fitted = np.exp(design @ np.linalg.lstsq(root[:, None] * design, root * working, rcond=1e-10)[0])
    weighted = design * fitted[:, None]
    information = np.linalg.pinv(design.T @ weighted, rcond=1e-10)
    return cells, design, fitted, np.einsum("ij,jk,ik->i", weighted, information, design)


def random_answers(seed, classes, rows, missing=()):
    """Truth without the `missing` classes and probabilities in sixths, so that ties are everywhere."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([c for c in range(classes) if c not in missing], size=rows)
    leaning = np.full((rows, classes), 0.6 / classes)
    leaning[np.arange(rows), truth] += 0.4
    probabilities = rng.multinomial(6, leaning) / 6  # (rows, classes)
    return truth, probabilities.argmax(axis=1), probabilities


def approx(values):
    return pytest.approx(values, abs=1e-12, nan_ok=True)


# Expression classes


def test_classification_by_hand():
    scores, reasons = metrics.classification_scores(Y_TRUE, Y_PRED, PROBABILITIES, NAMES)
    assert scores == approx(BY_HAND)
    assert reasons == {"precision_sad": "sad was never predicted"}


def test_classification_keys_stand_in_order_and_values_are_plain_floats():
    names = LABEL_SETS["affectnet8"].names
    truth, predicted, probabilities = random_answers(0, 8, 60)
    scores, _ = metrics.classification_scores(truth, predicted, probabilities, names)
    per_class = [f"{score}_{name}" for score in ("f1", "precision", "recall") for name in names]
    ends = ["cohen_kappa", "roc_auc_macro", "pr_auc_macro", "krippendorff_alpha"]
    assert list(scores) == ["accuracy", "balanced_accuracy", "macro_f1", *per_class, *ends]
    assert {type(value) for value in scores.values()} == {float}
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("missing", [(), (5, 7)])
def test_classification_against_loops(seed, missing):
    names = LABEL_SETS["affectnet8"].names
    truth, predicted, probabilities = random_answers(seed, 8, 70, missing)
    scores, _ = metrics.classification_scores(truth, predicted, probabilities, names)
    assert scores == approx(classification_by_loops(truth.tolist(), predicted.tolist(), probabilities.tolist(), names))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("missing", [(), (2,)])
def test_classification_against_scikit_learn(seed, missing):
    names = LABEL_SETS["fer7"].names
    truth, predicted, probabilities = random_answers(seed, 7, 200, missing)
    present = np.unique(truth)
    scores, _ = metrics.classification_scores(truth, predicted, probabilities, names)
    assert scores["accuracy"] == approx(sk.accuracy_score(truth, predicted))
    assert scores["balanced_accuracy"] == approx(sk.recall_score(truth, predicted, labels=present, average="macro"))
    assert scores["macro_f1"] == approx(sk.f1_score(truth, predicted, labels=present, average="macro"))
    assert scores["cohen_kappa"] == approx(sk.cohen_kappa_score(truth, predicted))
    if not missing:  # elsewhere scikit-learn refuses the first and lowers the second
        assert scores["roc_auc_macro"] == approx(sk.roc_auc_score(truth, probabilities, multi_class="ovr"))
        assert scores["pr_auc_macro"] == approx(sk.average_precision_score(np.eye(7)[truth], probabilities))


def test_absent_classes_are_left_out_of_means_and_named():
    names = (*NAMES, "disgust", "contempt")
    probabilities = np.hstack([PROBABILITIES, np.zeros((6, 2))])
    scores, reasons = metrics.classification_scores(Y_TRUE, Y_PRED, probabilities, names)
    undefined = {f"{score}_{name}": math.nan for score in ("f1", "precision", "recall") for name in ("disgust", "contempt")}
    assert scores == approx(BY_HAND | undefined)
    partial = "mean over 3 of 5 classes: no rows of disgust, contempt"
    means = ("balanced_accuracy", "macro_f1", "roc_auc_macro", "pr_auc_macro")
    assert {key: reasons[key] for key in means} == dict.fromkeys(means, partial)
    assert reasons["recall_disgust"] == reasons["f1_disgust"] == "no rows of disgust"
    assert reasons["precision_disgust"] == "disgust was never predicted"


def test_absent_class_that_is_predicted_costs_precision_and_has_no_f1():
    scores, reasons = metrics.classification_scores([0, 0, 1], [0, 2, 1], np.eye(3)[[0, 2, 1]], NAMES)
    assert scores["precision_sad"] == 0.0
    assert math.isnan(scores["f1_sad"])
    assert math.isnan(scores["recall_sad"])
    assert scores["macro_f1"] == approx((2 / 3 + 1) / 2)
    assert "precision_sad" not in reasons


def test_constant_prediction_is_chance():
    truth = np.array([0, 0, 0, 1, 1, 2])
    scores, reasons = metrics.classification_scores(truth, np.zeros(6, int), np.full((6, 3), 1 / 3), NAMES)
    assert scores["cohen_kappa"] == 0.0
    assert scores["roc_auc_macro"] == 0.5
    assert scores["pr_auc_macro"] == approx((3 / 6 + 2 / 6 + 1 / 6) / 3)  # the share of each class
    assert scores["balanced_accuracy"] == approx(1 / 3)
    assert scores["krippendorff_alpha"] == approx(1 - (3 / 6) / (1 - (72 + 2 + 0) / 132))  # 9 angry, 2 happy, 1 sad
    assert set(reasons) == {"precision_happy", "precision_sad"}


@pytest.mark.parametrize("rows", [1, 4])
def test_one_class_everywhere_has_no_agreement_beyond_chance_and_no_ranking(rows):
    truth = np.ones(rows, int)
    scores, reasons = metrics.classification_scores(truth, truth, np.eye(3)[truth], NAMES)
    for key in ("cohen_kappa", "krippendorff_alpha", "roc_auc_macro", "pr_auc_macro"):
        assert math.isnan(scores[key])
        assert "every row is happy" in reasons[key]
    assert scores["accuracy"] == scores["macro_f1"] == scores["f1_happy"] == 1.0
    assert reasons["macro_f1"] == "mean over 1 of 3 classes: no rows of angry, sad"


def test_one_wrong_row():
    scores, _ = metrics.classification_scores([0], [1], [[0.2, 0.8, 0.0]], NAMES)
    assert scores["accuracy"] == scores["f1_angry"] == scores["macro_f1"] == 0.0
    assert scores["precision_happy"] == 0.0
    assert scores["cohen_kappa"] == 0.0  # p_o = 0, p_e = 0
    assert scores["krippendorff_alpha"] == 0.0  # D_o = D_e = 1


def test_no_rows():
    scores, reasons = metrics.classification_scores([], [], np.empty((0, 3)), NAMES)
    assert set(scores) == set(BY_HAND)
    assert all(math.isnan(value) for value in scores.values())
    assert reasons == dict.fromkeys(scores, "no rows")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_nan_has_a_reason(seed):
    truth, predicted, probabilities = random_answers(seed, 8, 1 + seed, missing=(0, 3))
    scores, reasons = metrics.classification_scores(truth, predicted, probabilities, LABEL_SETS["affectnet8"].names)
    assert {key for key, value in scores.items() if math.isnan(value)} <= set(reasons) <= set(scores)


def test_probabilities_of_a_diverged_network_leave_the_other_scores():
    broken = PROBABILITIES.copy()
    broken[2] = math.nan
    scores, reasons = metrics.classification_scores(Y_TRUE, Y_PRED, broken, NAMES)
    assert math.isnan(scores["roc_auc_macro"])
    assert math.isnan(scores["pr_auc_macro"])
    assert reasons["roc_auc_macro"] == "probabilities are NaN in 1 of 6 rows"
    assert scores["macro_f1"] == approx(BY_HAND["macro_f1"])
    assert math.isnan(metrics.expected_calibration_error(broken, Y_TRUE))


@pytest.mark.parametrize(
    ("truth", "predicted", "probabilities", "message"),
    [
        ([0, 1], [0], np.eye(3)[:2], "one length"),
        ([0, 3], [0, 1], np.eye(3)[:2], "0..2"),
        ([0, -1], [0, 1], np.eye(3)[:2], "0..2"),
        ([0, 1.5], [0, 1], np.eye(3)[:2], "integers"),
        ([0, 1], [0, 1], np.eye(3), r"must be \(2, 3\)"),
        ([0, 1], [0, 1], np.array([[4.0, -1.0, 2.0], [0.0, 1.0, 0.0]]), "logits"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(truth, predicted, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification_scores(truth, predicted, probabilities, NAMES)


def test_confusion_counts():
    counts = metrics.confusion_counts(Y_TRUE, Y_PRED, 3)
    assert counts.tolist() == [[1, 1, 0], [1, 2, 0], [0, 1, 0]]
    assert counts.dtype == np.int64
    assert metrics.confusion_counts([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_confusion_counts_of_narrow_integers_do_not_overflow():
    truth = np.array([199], dtype=np.uint8)
    assert np.argwhere(metrics.confusion_counts(truth, truth, 200)).tolist() == [[199, 199]]


def test_commonest_confusions_by_fraction_of_the_true_class():
    counts = np.array([[90, 10, 0], [5, 5, 0], [3, 2, 5]])
    assert metrics.commonest_confusions(counts, NAMES) == [
        ("happy", "angry", 5, 0.5),
        ("sad", "angry", 3, 0.3),
        ("angry", "happy", 10, 0.1),
    ]  # sad as happy has 2 rows, below the minimum
    assert metrics.commonest_confusions(counts, NAMES, top=1, min_count=1) == [("happy", "angry", 5, 0.5)]
    assert metrics.commonest_confusions(counts, NAMES, min_count=1)[2] == ("sad", "happy", 2, 0.2)
    assert metrics.commonest_confusions(np.zeros((3, 3), int), NAMES, min_count=0) == []
    tied = np.array([[12, 4, 4], [10, 30, 10], [0, 0, 9]])
    assert [pair[:3] for pair in metrics.commonest_confusions(tied, NAMES)] == [
        ("happy", "angry", 10),
        ("happy", "sad", 10),
        ("angry", "happy", 4),
        ("angry", "sad", 4),
    ]


def test_confusion_pattern_of_published_example():
    # Agresti 2002, Categorical Data Analysis, chapter 10 (carcinoma ratings of two pathologists): quasi-independence
    # has X² = 11.5. No mistake falls into the fourth column, so its three cells count for nothing: 9 cells, 6 parameters.
    counts = np.array([[22, 2, 2, 0], [5, 7, 14, 0], [0, 2, 36, 0], [0, 1, 17, 10]])
    pattern = metrics.confusion_pattern_test(counts, ("1", "2", "3", "4"))
    assert pattern.chi2 == pytest.approx(11.5, abs=0.05)
    assert pattern.chi2_df == 3 and pattern.errors == 43
    assert pattern.cohen_w == approx(math.sqrt(pattern.chi2 / 43))
    assert pattern.note == "7 of 9 cells have an expected count under 5: the chi-square test is rough"
    assert np.isnan(pattern.expected[:, 3]).all() and np.isnan(np.diag(pattern.residuals)).all()


def test_confusion_pattern_of_rows_with_as_many_mistakes_as_cells():
    # Three mistakes in three cells of every row: the first guess has the right rows, and not yet the right columns.
    counts = np.array([[20, 1, 0, 2], [0, 20, 0, 3], [1, 0, 20, 2], [1, 0, 2, 20]])
    pattern = metrics.confusion_pattern_test(counts, ("1", "2", "3", "4"))
    assert np.nansum(pattern.expected, axis=0) == pytest.approx([2, 1, 2, 7], rel=1e-9)
    assert np.nansum(pattern.expected, axis=1) == pytest.approx([3, 3, 3, 3], rel=1e-9)
    _, _, fitted, _ = quasi_independence_by_newton(counts)
    assert pattern.expected[np.isfinite(pattern.expected)] == pytest.approx(fitted, rel=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_confusion_pattern_against_poisson_regression(seed):
    rng = np.random.default_rng(seed)
    size = 3 + seed % 6
    names = tuple("abcdefgh"[:size])
    counts = rng.poisson(rng.gamma(1.5, 12, (size, size)))
    if size > 4:
        counts[1], counts[:, 2] = rng.integers(0, 2) * counts[1], 0  # no row of b, c never predicted
    pattern = metrics.confusion_pattern_test(counts, names)
    cells, design, fitted, leverage = quasi_independence_by_newton(counts)
    observed = np.array([counts[cell] for cell in cells])
    assert np.isfinite(pattern.expected).sum() == len(cells)
    assert np.array([pattern.expected[cell] for cell in cells]) == pytest.approx(fitted, rel=1e-7)
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, fitted, strict=True))
    assert pattern.chi2 == pytest.approx(statistic, rel=1e-7)
    assert pattern.chi2_df == len(cells) - np.linalg.matrix_rank(design)
    if (counts.sum(axis=1) * counts.sum(axis=0)).all():
        assert pattern.chi2_df == (size - 1) ** 2 - size
    assert pattern.chi2_p == pytest.approx(chi2.sf(statistic, pattern.chi2_df), rel=1e-6)
    residuals = (observed - fitted) / np.sqrt(fitted * (1 - leverage))
    assert np.array([pattern.residuals[cell] for cell in cells]) == pytest.approx(residuals, rel=1e-6, abs=1e-6)
    p_values = [poisson.sf(o - 1, e) if e < 5 else norm.sf(z) for o, e, z in zip(observed, fitted, residuals, strict=True)]
    significant = set()
    for rank, k in enumerate(np.argsort(p_values)):  # Holm: stop at the first that is not significant
        if p_values[k] * (len(cells) - rank) >= 0.05:
            break
        significant.add((names[cells[k][0]], names[cells[k][1]]))
    assert {(cell.true, cell.predicted) for cell in pattern.excess} == significant
    smallest = min(p_values) * len(cells)
    assert np.nanmin(pattern.p_holm) == pytest.approx(min(smallest, 1), rel=1e-5)


def test_confusion_pattern_where_margins_explain_everything():
    counts = np.outer([1, 2, 3, 4], [5, 7, 11, 13]) * 10
    np.fill_diagonal(counts, [900, 0, 40, 3])  # hits do not matter
    pattern = metrics.confusion_pattern_test(counts, ("a", "b", "c", "d"))
    assert pattern.chi2 == pytest.approx(0, abs=1e-12) and pattern.chi2_p == pytest.approx(1) and pattern.chi2_df == 5
    assert pattern.cohen_w == pytest.approx(0, abs=1e-6) and pattern.excess == () and pattern.note is None
    away = ~np.eye(4, dtype=bool)
    assert pattern.expected[away] == pytest.approx(counts[away].astype(float), rel=1e-9)


@pytest.mark.parametrize("size", [4, 7, 8])
def test_confusion_pattern_finds_a_planted_excess_and_nothing_else(size):
    names = tuple("abcdefgh"[:size])
    counts = np.full((size, size), 30)
    counts[2, 1] += 60
    pattern = metrics.confusion_pattern_test(counts, names)
    (cell,) = pattern.excess
    assert (cell.true, cell.predicted, cell.rows) == ("c", "b", 90)
    assert cell.residual == np.nanmax(pattern.residuals) > 4.5 and cell.p < 1e-4
    assert 45 < cell.expected < 75
    assert pattern.scores() == {
        "confusion_chi2": pattern.chi2,
        "confusion_chi2_df": (size - 1) ** 2 - size,
        "confusion_chi2_p": pattern.chi2_p,
        "confusion_cohen_w": pattern.cohen_w,
    }


def test_confusion_pattern_names_the_strongest_first():
    counts = np.full((7, 7), 30)
    counts[0, 1] += 60
    counts[3, 5] += 200
    counts[6, 2] += 110
    found = metrics.confusion_pattern_test(counts, tuple("abcdefg")).excess
    assert [(cell.true, cell.predicted) for cell in found] == [("d", "f"), ("g", "c"), ("a", "b")]


def test_confusion_pattern_rarely_finds_what_is_not_there():
    rng = np.random.default_rng(3)
    chance = np.outer(rng.dirichlet(np.full(7, 5)), rng.dirichlet(np.full(7, 5)))
    np.fill_diagonal(chance, 0)
    tables = rng.multinomial(1300, chance.ravel() / chance.sum(), 400).reshape(-1, 7, 7)
    patterns = [metrics.confusion_pattern_test(table, tuple("abcdefg")) for table in tables]
    assert np.mean([bool(pattern.excess) for pattern in patterns]) == pytest.approx(0.05, abs=0.03)  # the level
    assert np.mean([pattern.chi2_p < 0.05 for pattern in patterns]) == pytest.approx(0.05, abs=0.03)
    few = rng.multinomial(60, chance.ravel() / chance.sum(), 400).reshape(-1, 7, 7)  # about one a cell
    assert np.mean([bool(metrics.confusion_pattern_test(table, tuple("abcdefg")).excess) for table in few]) < 0.05


def test_a_mistake_or_two_are_no_excess():
    counts = np.zeros((7, 7), dtype=int)
    counts[0, 1:] = counts[1:, 0] = 40  # away from a, little is expected, and two rows lie far from it in standard errors
    counts[2, 3] = 2
    pattern = metrics.confusion_pattern_test(counts, tuple("abcdefg"))
    assert pattern.residuals[2, 3] > 5 and pattern.excess == ()


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (np.diag([5, 3, 2]), "no row is misclassified"),
        (np.zeros((3, 3), dtype=int), "no row is misclassified"),
        ([[5, 2, 0], [3, 4, 0], [0, 0, 9]], "mistakes are among fewer than 3 classes"),
        ([[5, 2], [3, 4]], "mistakes are among fewer than 3 classes"),
        ([[5, 2, 4, 1], [3, 4, 0, 0], [1, 0, 9, 0], [0, 0, 0, 3]], "every mistake has a as truth or prediction"),
        ([[0, 0, 0], [3, 1, 2], [4, 5, 1]], "mistakes are in too few cells: no degrees of freedom"),  # no row of a
    ],
)
def test_confusion_pattern_is_undefined(counts, reason):
    counts = np.array(counts)
    pattern = metrics.confusion_pattern_test(counts, tuple("abcd"[: len(counts)]))
    assert pattern.undefined == reason and pattern.excess == () and pattern.note is None
    assert pattern.errors == counts.sum() - np.trace(counts)
    assert all(math.isnan(value) for value in pattern.scores().values()) and np.isnan(pattern.residuals).all()


def test_confusion_pattern_has_finite_figures_where_the_p_value_underflows():
    counts = np.full((4, 4), 10)
    counts[0, 1] = counts[1, 0] = counts[2, 3] = counts[3, 2] = 100_000
    pattern = metrics.confusion_pattern_test(counts, tuple("abcd"))
    assert pattern.chi2_p == 0 and pattern.chi2 > 1e5
    assert {(cell.true, cell.predicted) for cell in pattern.excess} == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")}


def test_krippendorff_alpha_of_published_examples():
    # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections A (binary) and B (nominal)
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert metrics.krippendorff_alpha_nominal(meg, owen) == pytest.approx(0.095, abs=5e-4)
    ben, gerry = ["abcde".index(c) for c in "aabbdcccedda"], ["abcde".index(c) for c in "babbbccceddd"]
    assert metrics.krippendorff_alpha_nominal(ben, gerry) == pytest.approx(0.692, abs=5e-4)


@pytest.mark.parametrize("names", [("fear",), NAMES])
def test_alpha_and_majority_without_rows(names):
    assert math.isnan(metrics.krippendorff_alpha_nominal([], []))
    assert metrics.majority_class([], names) is None
    baselines = metrics.classification_baselines([], names)
    assert baselines == approx(
        {
            "baseline_accuracy_majority": math.nan,
            "baseline_macro_f1_majority": math.nan,
            "baseline_accuracy_chance": 1 / len(names),
        }
    )


def test_classification_baselines_by_hand():
    assert metrics.majority_class(Y_TRUE, NAMES) == "happy"
    assert metrics.classification_baselines(Y_TRUE, NAMES) == approx(
        {
            "baseline_accuracy_majority": 3 / 6,
            "baseline_macro_f1_majority": (6 / (6 + 3)) / 3,
            "baseline_accuracy_chance": 1 / 3,
        }
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_majority_baseline_is_the_score_of_saying_it_always(seed):
    names = LABEL_SETS["fer7"].names
    truth, _, probabilities = random_answers(seed, 7, 40, missing=(seed % 7,))
    majority = names.index(metrics.majority_class(truth, names))
    scores, _ = metrics.classification_scores(truth, np.full(40, majority), probabilities, names)
    baselines = metrics.classification_baselines(truth, names)
    assert baselines["baseline_accuracy_majority"] == approx(scores["accuracy"])
    assert baselines["baseline_macro_f1_majority"] == approx(scores["macro_f1"])


# Valence and arousal


def test_affect_by_hand():
    nan = math.nan
    truth = np.array([[0.1, nan], [0.2, 0.0], [0.3, -0.5], [nan, 0.5]])
    predicted = np.array([[0.2, 9.0], [0.2, 0.5], [0.5, -0.5], [9.0, 0.0]])  # the nines stand where no label is
    scores, reasons = metrics.affect_scores(truth, predicted)
    assert list(scores) == [
        f"{target}_{key}"
        for target in ("valence", "arousal")
        for key in ("rmse", "mae", "pearson", "sagr", "ccc", "sagr_nonzero", "rows")
    ]
    assert {type(value) for value in scores.values()} == {float}
    assert scores == approx(
        {
            "valence_rmse": math.sqrt((0.01 + 0 + 0.04) / 3),
            "valence_mae": 0.3 / 3,
            "valence_pearson": 1 / math.sqrt(2 / 3 * 2),  # in tenths: moments 2/3, 2 and 1
            "valence_sagr": 1.0,
            "valence_ccc": 2 / (2 / 3 + 2 + 1),  # means 2 and 3; with 1/(n − 1) it would be 3/5, not 6/11
            "valence_sagr_nonzero": 1.0,
            "valence_rows": 3.0,
            "arousal_rmse": math.sqrt((0.25 + 0 + 0.25) / 3),
            "arousal_mae": 1 / 3,
            "arousal_pearson": 0.5,  # deviations 0 −½ ½ and ½ −½ 0
            "arousal_sagr": 1 / 3,  # 0 for 0.5 and 0.5 for 0 are both wrong
            "arousal_ccc": 0.5,  # equal means and variances
            "arousal_sagr_nonzero": 1 / 2,
            "arousal_rows": 3.0,
        }
    )
    assert reasons == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_affect_against_loops(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(-4, 5, size=(50, 2)) / 4  # zeros and ties
    predicted = np.where(rng.random((50, 2)) < 0.2, 0.0, 0.7 * truth + rng.normal(0.1, 0.3, size=(50, 2))).astype(np.float32)
    truth[rng.random((50, 2)) < 0.25] = math.nan
    scores, reasons = metrics.affect_scores(truth, predicted)
    assert reasons == {}
    for column, target in enumerate(("valence", "arousal")):
        pairs = [(t, p) for t, p in zip(truth[:, column].tolist(), predicted[:, column].tolist(), strict=True) if t == t]
        true, guess = [t for t, _ in pairs], [p for _, p in pairs]
        nonzero = [(t, p) for t, p in pairs if t != 0]
        assert scores[f"{target}_rows"] == len(pairs) < 50
        assert scores[f"{target}_rmse"] == approx(math.sqrt(sum((p - t) ** 2 for t, p in pairs) / len(pairs)))
        assert scores[f"{target}_mae"] == approx(sum(abs(p - t) for t, p in pairs) / len(pairs))
        assert scores[f"{target}_pearson"] == approx(pearsonr(true, guess).statistic)
        assert scores[f"{target}_sagr"] == approx(sagr_by_cases(true, guess))
        assert scores[f"{target}_sagr_nonzero"] == approx(sagr_by_cases(*zip(*nonzero, strict=True)))
        assert scores[f"{target}_ccc"] == approx(ccc_by_sums(true, guess))


def test_missing_labels_are_the_same_as_rows_that_are_not_there():
    rng = np.random.default_rng(3)
    truth, predicted = rng.uniform(-1, 1, (40, 2)), rng.uniform(-1, 1, (40, 2))
    hidden = truth.copy()
    hidden[::3] = math.nan
    kept = np.arange(40) % 3 != 0
    assert metrics.affect_scores(hidden, predicted) == metrics.affect_scores(truth[kept], predicted[kept])


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_constant_prediction_has_ccc_zero_and_no_pearson(rows):
    truth = np.linspace(-0.7, 0.9, 2 * rows).reshape(rows, 2)
    scores, reasons = metrics.affect_scores(truth, np.full((rows, 2), 0.1))
    for target in ("valence", "arousal"):
        assert scores[f"{target}_ccc"] == 0.0
        assert math.isnan(scores[f"{target}_pearson"])
        assert reasons[f"{target}_pearson"].endswith(f"predictions of {target} do not vary")
        assert f"{target}_ccc" not in reasons


def test_constant_and_equal_has_no_ccc():
    scores, reasons = metrics.affect_scores(np.full((7, 2), 0.1), np.full((7, 2), 0.1))
    assert math.isnan(scores["valence_ccc"])
    assert reasons["valence_ccc"] == "labels and predictions of valence are one and the same value"
    assert reasons["valence_pearson"] == "labels and predictions of valence do not vary"
    assert scores["valence_rmse"] == 0.0


def test_zero_labels_count_in_sagr_alone():
    scores, reasons = metrics.affect_scores(np.zeros((4, 2)), [[0.0, 0.1], [0.2, 0.1], [-0.2, 0.1], [0.0, 0.1]])
    assert scores["valence_sagr"] == 0.5
    assert scores["arousal_sagr"] == 0.0
    assert math.isnan(scores["valence_sagr_nonzero"])
    assert reasons["valence_sagr_nonzero"] == "every valence label is 0"


@pytest.mark.parametrize("truth", [np.empty((0, 2)), np.full((3, 2), math.nan)])
def test_no_affect_labels(truth):
    scores, reasons = metrics.affect_scores(truth, np.zeros_like(truth))
    assert {key for key, value in scores.items() if value == 0.0} == {"valence_rows", "arousal_rows"}
    assert sum(math.isnan(value) for value in scores.values()) == 12
    assert reasons["arousal_ccc"] == "no rows with arousal labels"
    assert len(reasons) == 12
    assert all(math.isnan(value) for value in metrics.affect_baselines(truth).values())


def test_affect_predictions_of_a_diverged_network_are_not_scored():
    truth, predicted = np.array([[0.5, 0.5], [-0.5, 0.1]]), np.array([[math.nan, 0.5], [-0.5, 0.2]])
    scores, reasons = metrics.affect_scores(truth, predicted)
    assert math.isnan(scores["valence_sagr"])  # and not 0.5, with NaN counted as a wrong sign
    assert reasons["valence_sagr"] == "valence is not finite in 1 of 2 labelled rows"
    assert scores["arousal_mae"] == approx(0.05)


def test_small_functions_give_nan_for_nan_and_for_nothing():
    for score in (metrics.concordance_ccc, metrics.pearson_correlation, metrics.sign_agreement):
        assert math.isnan(score([], []))
        assert math.isnan(score([0.1, math.nan], [0.1, 0.2]))
        assert math.isnan(score([0.1, 0.3], [0.1, math.nan]))
        with pytest.raises(ValueError, match="one length"):
            score([0.1], [0.1, 0.2])


def test_ccc_is_lower_than_pearson_by_shift_and_scale():
    truth = np.random.default_rng(0).uniform(-1, 1, 100)
    assert metrics.concordance_ccc(truth, truth) == approx(1.0)
    assert metrics.concordance_ccc(truth, -truth) < -0.9
    for other in (truth + 0.3, 0.5 * truth):
        assert metrics.pearson_correlation(truth, other) == approx(1.0)
        assert 0 < metrics.concordance_ccc(truth, other) < 0.9


def test_affect_of_another_shape_is_refused():
    for truth, predicted in ((np.zeros((3, 2)), np.zeros((2, 2))), (np.zeros(3), np.zeros(3)), (np.zeros((2, 3)),) * 2):
        with pytest.raises(ValueError, match=r"\(N, 2\)"):
            metrics.affect_scores(truth, predicted)


def test_affect_baselines_by_hand():
    baselines = metrics.affect_baselines([[0.5, -0.2], [-0.5, math.nan], [0.0, -0.4], [0.8, math.nan]])
    assert baselines == approx(
        {
            "baseline_valence_rmse_mean": math.sqrt((0.3**2 + 0.7**2 + 0.2**2 + 0.6**2) / 4),  # mean 0.2
            "baseline_valence_sagr_positive": 2 / 4,
            "baseline_valence_sagr_negative": 1 / 4,
            "baseline_arousal_rmse_mean": 0.1,
            "baseline_arousal_sagr_positive": 0.0,
            "baseline_arousal_sagr_negative": 1.0,
        }
    )


def test_affect_baselines_are_the_scores_of_constants():
    truth = np.random.default_rng(5).integers(-2, 4, size=(60, 2)) / 4
    truth[::7, 1] = math.nan
    baselines = metrics.affect_baselines(truth)
    for name, constant in (("rmse_mean", np.nanmean(truth, axis=0)), ("sagr_positive", 0.3), ("sagr_negative", -0.3)):
        scores, _ = metrics.affect_scores(truth, np.zeros((60, 2)) + constant)
        for target in ("valence", "arousal"):
            assert baselines[f"baseline_{target}_{name}"] == approx(scores[f"{target}_{name.split('_')[0]}"])


# Probabilities and intervals


def test_softmax():
    probabilities = metrics.softmax(np.array([[0.0, math.log(2), math.log(5)], [1000.0, 1000.0, -1000.0]]))
    assert probabilities == approx(np.array([[1 / 8, 2 / 8, 5 / 8], [0.5, 0.5, 0.0]]))
    half = metrics.softmax(np.random.default_rng(0).normal(0, 5, (200, 8)).astype(np.float16))
    assert half.dtype == np.float64
    assert half.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-15)
    assert metrics.softmax(np.empty((0, 8))).shape == (0, 8)


def test_calibration_error_by_hand():
    # said 0.6 and right once in two, said 0.9 and right twice in two: off by 0.1 everywhere
    rows, truth = [[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.9, 0.1]], [0, 1, 1, 0]
    assert metrics.expected_calibration_error(rows, truth, bins=5) == approx(0.1)
    # 0.6 closes the interval below it: |0 − 0.6| and |1 − 0.7| of one row each, not |1 − 1.3| of two
    assert metrics.expected_calibration_error([[0.6, 0.4], [0.7, 0.3]], [1, 0], bins=5) == approx((0.6 + 0.3) / 2)
    assert metrics.expected_calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0.0
    assert metrics.expected_calibration_error([[1.0, 0.0]], [1]) == 1.0
    assert math.isnan(metrics.expected_calibration_error(np.empty((0, 3)), []))


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_error_against_loops(seed):
    rng = np.random.default_rng(seed)
    probabilities, truth = rng.dirichlet(np.ones(4), 80), rng.integers(0, 4, 80)
    total = 0.0
    for b in range(15):
        inside = [
            (max(row), float(row.index(max(row)) == t))
            for row, t in zip(probabilities.tolist(), truth, strict=True)
            if b / 15 < max(row) <= (b + 1) / 15
        ]
        if inside:
            confidence, accuracy = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            total += len(inside) / 80 * abs(accuracy - confidence)
    assert metrics.expected_calibration_error(probabilities, truth) == approx(total)


@pytest.mark.parametrize(
    ("probabilities", "truth", "bins", "message"),
    [([[3.0, 1.0]], [0], 15, "logits"), ([[0.5, 0.5]], [2], 15, "0..1"), ([[0.5, 0.5]], [0], 0, "at least 1")],
)
def test_calibration_error_refuses(probabilities, truth, bins, message):
    with pytest.raises(ValueError, match=message):
        metrics.expected_calibration_error(probabilities, truth, bins=bins)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1),
    ],
)
def test_accuracy_interval_of_published_examples(correct, total, low, high):
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3; the last row mirrors the third
    assert metrics.accuracy_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_accuracy_interval_ends_where_the_score_test_rejects(confidence):
    z = {0.8: 1.2815515655, 0.95: 1.9599639845, 0.99: 2.5758293035}[confidence]
    for correct, total in ((1, 3), (7, 10), (2210, 3589)):
        for end in metrics.accuracy_interval(correct, total, confidence):
            assert abs(correct / total - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), rel=1e-8)


def test_accuracy_interval_at_its_limits():
    assert all(math.isnan(end) for end in metrics.accuracy_interval(0, 0))
    for correct, total, confidence in ((3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 95)):
        with pytest.raises(ValueError, match="no interval"):
            metrics.accuracy_interval(correct, total, confidence)


def test_start_up_is_light():
    code = "import metrics, sys; print(sorted({'sklearn', 'scipy', 'torch'} & set(sys.modules)))"
    root = Path(metrics.__file__).parent
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_fit_that_does_not_converge_is_undefined() -> None:
    """A collapsed network: every class is taken for one and the other way round, but for a single mistake."""
    counts = np.zeros((7, 7), dtype=int)
    counts[0, 1:] = counts[1:, 0] = 5000
    counts[2, 3] = 1
    pattern = metrics.confusion_pattern_test(counts, [f"c{index}" for index in range(7)])
    assert math.isnan(pattern.chi2) and pattern.undefined is not None and "does not converge" in pattern.undefined
