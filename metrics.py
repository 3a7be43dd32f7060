"""Scores as pure functions of arrays: expression classes, valence and arousal, calibration, intervals.

Arguments come in the order (y_true, y_pred) and scores are plain floats. A score that is undefined is NaN, never a zero that
looks like a result; the two functions that score a whole model also say why, under the same key.

    python -c "import metrics; print(metrics.accuracy_interval(2210, 3589))"
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NAN = math.nan
AFFECT_TARGETS = ("valence", "arousal")  # the columns of y_true and y_pred
AFFECT_SCORES = ("rmse", "mae", "pearson", "sagr", "ccc", "sagr_nonzero")
FEW_EXPECTED = 5  # a cell expected to hold fewer rows (Cochran 1954) does not follow the normal distribution well


# Expression classes


def classification_scores(
    y_true: ArrayLike, y_pred: ArrayLike, probabilities: ArrayLike, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Every figure of a classifier, and for each one that is NaN or a mean over fewer classes, the reason.

    `y_true` and `y_pred` are class indices (N,), `probabilities` (N, C) float64 rows that sum to 1, `names` the C names.
    Raises ValueError where shapes or indices do not fit, or rows do not sum to 1 (logits given for probabilities).

    Keys: `accuracy balanced_accuracy macro_f1`, then `f1_<label> precision_<label> recall_<label>`, then `cohen_kappa
    roc_auc_macro pr_auc_macro krippendorff_alpha`. Recall and F1 are undefined for a class without true rows, precision for
    one that is never predicted; a class with true rows but no hit has F1 = 2TP / (2TP + FP + FN) = 0. Macro F1, balanced
    accuracy and the two areas (one class against the rest; PR-AUC is average precision) are means over the classes that have
    true rows. κ and α lie in [-1, 1], 0 being chance, all others in [0, 1].
    """
    counts = confusion_counts(y_true, y_pred, len(names))
    true, predicted = _class_indices(y_true), _class_indices(y_pred)
    areas, areas_reason = _ranking_areas(true, _checked_probabilities(probabilities, true.size, len(names)), names)
    hits, true_rows, predicted_rows = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)  # (C,) each

    recall = _ratios(hits, true_rows)
    precision = _ratios(hits, predicted_rows)
    f1 = _ratios(2 * hits, np.where(true_rows > 0, true_rows + predicted_rows, 0))

    scores = {
        "accuracy": _ratio(hits.sum(), true.size),
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        **{f"f1_{name}": value for name, value in zip(names, f1, strict=True)},
        **{f"precision_{name}": value for name, value in zip(names, precision, strict=True)},
        **{f"recall_{name}": value for name, value in zip(names, recall, strict=True)},
        "cohen_kappa": _cohen_kappa(counts),
        "roc_auc_macro": _mean_of_defined([roc_auc for roc_auc, _ in areas]),
        "pr_auc_macro": _mean_of_defined([pr_auc for _, pr_auc in areas]),
        "krippendorff_alpha": krippendorff_alpha_nominal(true, predicted),
    }
    if true.size == 0:
        return scores, dict.fromkeys(scores, "no rows")

    reasons: dict[str, str] = {}
    absent = [name for name, rows in zip(names, true_rows, strict=True) if rows == 0]
    never_predicted = [name for name, rows in zip(names, predicted_rows, strict=True) if rows == 0]
    if absent:
        partial = f"mean over {len(names) - len(absent)} of {len(names)} classes: no rows of {', '.join(absent)}"
        reasons |= dict.fromkeys(("balanced_accuracy", "macro_f1", "roc_auc_macro", "pr_auc_macro"), partial)
    if areas_reason:
        reasons |= dict.fromkeys(("roc_auc_macro", "pr_auc_macro"), areas_reason)
    reasons |= {f"{score}_{name}": f"no rows of {name}" for score in ("f1", "recall") for name in absent}
    reasons |= {f"precision_{name}": f"{name} was never predicted" for name in never_predicted}
    for key in ("cohen_kappa", "krippendorff_alpha"):
        if math.isnan(scores[key]):
            reasons[key] = f"every row is {names[true[0]]} and predicted so: no disagreement is possible by chance"
    return scores, reasons


def confusion_counts(y_true: ArrayLike, y_pred: ArrayLike, classes: int) -> np.ndarray:
    """Rows of each true class (first axis) predicted as each class (second axis): int64 (C, C).

    Raises ValueError where the two differ in length, are not integers or leave 0..classes - 1.
    """
    true, predicted = _class_indices(y_true, classes), _class_indices(y_pred, classes)
    _check_same_length(true, predicted)
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def commonest_confusions(
    counts: np.ndarray, names: Sequence[str], top: int = 5, min_count: int = 3
) -> list[tuple[str, str, int, float]]:
    """The `top` confusions as (true name, predicted name, rows, fraction of the true class), the largest fraction first.

    `counts` is a (C, C) matrix of `confusion_counts`. Pairs with fewer than `min_count` rows are left out: in a class of a
    handful of rows a single mistake would lead the list. Equal fractions: more rows first, then class order.
    """
    true_rows = np.asarray(counts).sum(axis=1)
    pairs = [
        (true_name, predicted_name, int(counts[i, j]), float(counts[i, j] / true_rows[i]))
        for i, true_name in enumerate(names)
        for j, predicted_name in enumerate(names)
        if i != j and counts[i, j] >= max(min_count, 1)
    ]
    return sorted(pairs, key=lambda pair: (-pair[3], -pair[2]))[:top]


class Excess(NamedTuple):
    """A confusion that is commoner than its margins explain: rows counted and expected, the distance in standard errors,
    and the p-value after Holm's correction."""

    true: str
    predicted: str
    rows: int
    expected: float
    residual: float
    p: float


class ConfusionPattern(NamedTuple):
    """What `confusion_pattern_test` found. Matrices are (C, C), true class first, NaN where there is nothing to test.

    `chi2`, `chi2_df`, `chi2_p` and `cohen_w` are NaN where `undefined` says why; `note` warns of small expected counts;
    `excess` has the cells whose `p_holm` is below the level, strongest first.
    """

    chi2: float
    chi2_df: float
    chi2_p: float
    cohen_w: float
    errors: int
    expected: np.ndarray
    residuals: np.ndarray
    p_holm: np.ndarray
    excess: tuple[Excess, ...]
    undefined: str | None
    note: str | None

    def scores(self) -> dict[str, float]:
        """The flat figures, under the keys of metrics.json."""
        return {f"confusion_{key}": getattr(self, key) for key in ("chi2", "chi2_df", "chi2_p", "cohen_w")}


def confusion_pattern_test(counts: np.ndarray, names: Sequence[str], *, level: float = 0.05) -> ConfusionPattern:
    """Which classes are mistaken for which more often than the margins explain, the hits on the diagonal left aside.

    `counts` is a (C, C) matrix of `confusion_counts`. Under quasi-independence (Goodman 1968) row i is taken for class j ≠ i
    in proportion to a_i · b_j: how often i is missed, times how often j is said by mistake. Against it stand Pearson's χ²
    over the cells off the diagonal with cells − rank of the design degrees of freedom, (C − 1)² − C where every class is
    missed and said by mistake, and Cohen's w = sqrt(χ² / mistakes) (Cohen 1988). Rows and columns without a mistake are
    fitted exactly and left out.

    Each cell has its adjusted residual (O − E) / sqrt(E (1 − leverage)) (Haberman 1973), about standard normal under the
    model, and a one-sided p-value of excess: of the normal distribution, or, for a cell expected to hold fewer than 5 rows,
    of the Poisson distribution. They are corrected over all cells (Holm 1979); `level` is the chance of naming any wrongly.
    """
    mistakes = np.array(counts, dtype=np.float64)  # (C, C)
    np.fill_diagonal(mistakes, 0)
    nothing = np.full(mistakes.shape, NAN)
    total, missed, said = mistakes.sum(), mistakes.sum(axis=1), mistakes.sum(axis=0)
    one_hot = np.eye(len(names))
    cells = (missed[:, None] > 0) & (said > 0) & (one_hot == 0)  # (C, C)
    i, j = np.nonzero(cells)  # (cells,) each
    design = np.hstack([one_hot[i], one_hot[j]])  # (cells, 2C)
    freedom = len(i) - int(np.linalg.matrix_rank(design)) if len(i) else 0
    everywhere = [name for name, rows in zip(names, missed + said, strict=True) if rows == total]
    undefined = None
    if total == 0:
        undefined = "no row is misclassified"
    elif ((missed + said) > 0).sum() < 3:
        undefined = "mistakes are among fewer than 3 classes"
    elif everywhere:  # the margins fix the table: away from that class all cells are 0
        undefined = f"every mistake has {everywhere[0]} as truth or prediction"
    elif freedom <= 0:
        undefined = "mistakes are in too few cells: no degrees of freedom"
    fitted = None if undefined else _quasi_independent(missed, said, cells)
    if fitted is None:
        undefined = undefined or "nearly every mistake has one class as truth or prediction: the fit does not converge"
        return ConfusionPattern(NAN, NAN, NAN, NAN, int(total), nothing, nothing, nothing, (), undefined, None)

    from scipy.special import chdtrc, gammainc, ndtr  # half a second to import

    observed, expected = mistakes[i, j], fitted[i, j]  # (cells,) each
    left, singular, _ = np.linalg.svd(np.sqrt(expected)[:, None] * design, full_matrices=False)
    leverage = np.square(left[:, singular > 1e-9 * singular[0]]).sum(axis=1)  # in the Poisson fit, whose weights are E
    free = leverage < 1 - 1e-9  # the others are alone with a parameter of their own
    error = np.sqrt(np.where(free, expected * (1 - leverage), NAN))
    residual = (observed - expected) / error
    poisson = np.where(observed > 0, gammainc(observed.clip(min=1), expected), 1)  # P(X ≥ O)
    tail = np.where(expected < FEW_EXPECTED, poisson, ndtr(-residual))
    corrected = np.full(len(i), NAN)
    corrected[free] = _holm(tail[free])
    matrices = [nothing.copy() for _ in range(3)]
    for matrix, values in zip(matrices, (expected, residual, corrected), strict=True):
        matrix[i, j] = values
    found = [
        Excess(names[i[k]], names[j[k]], int(observed[k]), float(expected[k]), float(residual[k]), float(corrected[k]))
        for k in np.flatnonzero(corrected < level)
    ]
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    few = int((expected < FEW_EXPECTED).sum())
    rough = f"{few} of {len(i)} cells have an expected count under {FEW_EXPECTED}: the chi-square test is rough"
    return ConfusionPattern(
        chi2=chi2,
        chi2_df=float(freedom),
        chi2_p=float(chdtrc(freedom, chi2)),
        cohen_w=math.sqrt(chi2 / total),
        errors=int(total),
        expected=matrices[0],
        residuals=matrices[1],
        p_holm=matrices[2],
        excess=tuple(sorted(found, key=lambda cell: (cell.p, -cell.residual))),
        undefined=None,
        note=rough if few > 0.2 * len(i) else None,
    )


def krippendorff_alpha_nominal(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Krippendorff's α (Krippendorff 2004) for nominal data, two raters (truth and network) and no missing value.

    1 − D_o / D_e with observed disagreement D_o = share of rows that differ and expected disagreement
    D_e = 1 − Σ n_c(n_c − 1) / (n(n − 1)), where n = 2N values are pooled and n_c of them are class c. In [-1, 1], 0 at
    chance. NaN without rows, and where a single value occurs (D_e = 0).
    """
    true, predicted = _class_indices(y_true), _class_indices(y_pred)
    _check_same_length(true, predicted)
    pooled_counts = np.unique(np.concatenate([true, predicted]), return_counts=True)[1]
    if pooled_counts.size < 2:
        return NAN
    pairs = 2 * true.size * (2 * true.size - 1)
    expected = (pairs - int((pooled_counts * (pooled_counts - 1)).sum())) / pairs
    return 1 - float(np.mean(true != predicted)) / expected


def majority_class(y_true: ArrayLike, names: Sequence[str]) -> str | None:
    """The name of the class with the most rows in `y_true` (N,), the first of equals; None without rows."""
    rows = _class_rows(y_true, len(names))
    return names[int(rows.argmax())] if rows.sum() else None


def classification_baselines(y_true: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """What needs no network: always saying the majority class (`majority_class` names it), and guessing evenly, 1 / C.

    Macro F1 as in `classification_scores`, over the classes present in `y_true` (N,): only the majority class has an F1
    above 0. Without rows both figures of the majority class are NaN.
    """
    rows = _class_rows(y_true, len(names))
    total, most, present = int(rows.sum()), int(rows.max()), int((rows > 0).sum())
    return {
        "baseline_accuracy_majority": _ratio(most, total),
        "baseline_macro_f1_majority": _ratio(2 * most, (total + most) * present),
        "baseline_accuracy_chance": 1 / len(names),
    }


# Valence and arousal


def affect_scores(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[dict[str, float], dict[str, str]]:
    """Every figure of a regression of [valence, arousal], and for each one that is NaN, the reason.

    Both arguments are (N, 2). NaN in `y_true` is a missing label and is left out, for each target by itself. Keys, for
    `valence` and `arousal`: `_rmse _mae` (in units of the labels), `_pearson _ccc` in [-1, 1], `_sagr` in [0, 1] and
    `_sagr_nonzero`, the same over labels that are not 0, and `_rows`, the number of labels. Raises ValueError for other
    shapes.
    """
    true_both, predicted_both = (np.asarray(values, dtype=np.float64) for values in (y_true, y_pred))
    if true_both.shape != predicted_both.shape or true_both.ndim != 2 or true_both.shape[1] != 2:
        raise ValueError(f"y_true and y_pred must both be (N, 2), not {true_both.shape} and {predicted_both.shape}")
    scores: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for column, target in enumerate(AFFECT_TARGETS):
        labelled = ~np.isnan(true_both[:, column])
        target_scores, target_reasons = _target_scores(true_both[labelled, column], predicted_both[labelled, column], target)
        scores |= {f"{target}_{key}": value for key, value in target_scores.items()}
        scores[f"{target}_rows"] = float(labelled.sum())
        reasons |= {f"{target}_{key}": reason for key, reason in target_reasons.items()}
    return scores, reasons


def concordance_ccc(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Concordance correlation coefficient (Lin 1989), 2 s_tp / (s_t² + s_p² + (m_t − m_p)²), in [-1, 1], for (N,) and (N,).

    Moments are the population's (1/N), as Lin has them. Where one side is constant, or both at different values, the
    covariance is 0 and so is the coefficient, as a network that always says the same deserves. Both constant and equal is
    0/0: NaN. NaN also without rows and where any value is NaN.
    """
    true, predicted = _paired_floats(y_true, y_pred)
    if _has_no_answer(true, predicted):
        return NAN
    if _is_constant(true) or _is_constant(predicted):  # exactly, where rounding of the mean would leave a crumb of variance
        return NAN if np.array_equal(true, predicted) else 0.0
    true_mean, predicted_mean = true.mean(), predicted.mean()
    covariance = ((true - true_mean) * (predicted - predicted_mean)).mean()
    return float(2 * covariance / (true.var() + predicted.var() + (true_mean - predicted_mean) ** 2))


def pearson_correlation(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Pearson's r in [-1, 1] for (N,) and (N,); NaN without rows, where either side is constant, where any value is NaN."""
    true, predicted = _paired_floats(y_true, y_pred)
    if _has_no_answer(true, predicted) or _is_constant(true) or _is_constant(predicted):
        return NAN
    return float(np.corrcoef(true, predicted)[0, 1])


def sign_agreement(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """SAGR (Nicolaou et al. 2011), the share of rows with sign(y_true) = sign(y_pred), in [0, 1], for (N,) and (N,).

    The sign has three values, so a label of exactly 0 is matched by a prediction of exactly 0 alone. Signs are those of the
    values themselves, not of their distance from the mean. NaN without rows and where any value is NaN.
    """
    true, predicted = _paired_floats(y_true, y_pred)
    return NAN if _has_no_answer(true, predicted) else float(np.mean(np.sign(true) == np.sign(predicted)))


def affect_baselines(y_true: ArrayLike) -> dict[str, float]:
    """What needs no network, for `y_true` (N, 2) with NaN where missing: RMSE of always saying the mean of these labels,
    SAGR of always saying a positive and always a negative value. NaN where a target has no labels.
    """
    labels = np.asarray(y_true, dtype=np.float64)
    if labels.ndim != 2 or labels.shape[1] != 2:
        raise ValueError(f"y_true must be (N, 2), not {labels.shape}")
    baselines: dict[str, float] = {}
    for column, target in enumerate(AFFECT_TARGETS):
        known = labels[~np.isnan(labels[:, column]), column]
        baselines[f"baseline_{target}_rmse_mean"] = float(known.std()) if known.size else NAN
        baselines[f"baseline_{target}_sagr_positive"] = _ratio((known > 0).sum(), known.size)
        baselines[f"baseline_{target}_sagr_negative"] = _ratio((known < 0).sum(), known.size)
    return baselines


# Probabilities and intervals


def softmax(logits: ArrayLike) -> np.ndarray:
    """Probabilities over the last axis, in float64 whatever comes in: rows of reduced precision do not sum to 1."""
    values = np.asarray(logits, dtype=np.float64)  # (..., C)
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))  # at most 1: no overflow
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def expected_calibration_error(probabilities: ArrayLike, y_true: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017) in [0, 1]: how far confidence and accuracy lie apart, 0 being calibrated.

    Rows of `probabilities` (N, C) are put into `bins` intervals ((b − 1)/bins, b/bins] by their largest probability;
    |accuracy − mean confidence| of the intervals is averaged, weighted by rows. NaN without rows and where a probability is
    NaN. Raises ValueError where shapes or indices do not fit or rows do not sum to 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    classes = np.shape(probabilities)[-1]
    true = _class_indices(y_true, classes)
    rows = _checked_probabilities(probabilities, true.size, classes)
    if true.size == 0:
        return NAN
    confidence, correct = rows.max(axis=1), rows.argmax(axis=1) == true  # (N,)
    interval = np.searchsorted(np.arange(1, bins) / bins, confidence)  # (N,), an edge belongs to the interval below it
    return float(np.abs(np.bincount(interval, weights=correct - confidence)).sum() / true.size)


def accuracy_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): the accuracies, low and high, that `correct` of `total` rows agree with.

    NaN, NaN without rows. Raises ValueError where 0 <= correct <= total or 0 < confidence < 1 does not hold.
    """
    if not 0 <= correct <= total or not 0 < confidence < 1:
        raise ValueError(f"no interval for {correct} correct of {total} rows at confidence {confidence}")
    if total == 0:
        return NAN, NAN
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


# Pieces of the above


def _ranking_areas(
    true: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> tuple[list[tuple[float, float]], str | None]:
    """(ROC-AUC, average precision) of each class against the rest, NaN for an absent class; a reason where all are NaN.

    With one class in the truth there is no rest: no ROC curve, and an average precision of 1 whatever the network says.
    """
    areas = [(NAN, NAN)] * len(names)
    present = np.unique(true)
    broken_rows = int(np.isnan(probabilities).any(axis=1).sum())
    if broken_rows:
        return areas, f"probabilities are NaN in {broken_rows} of {true.size} rows"
    if present.size == 0:
        return areas, "no rows"
    if present.size == 1:
        return areas, f"every row is {names[present[0]]}: there is no other class to tell it from"

    from sklearn.metrics import average_precision_score, roc_auc_score  # over a second to import

    for c in present:
        is_class, score = true == c, probabilities[:, c]
        areas[c] = (float(roc_auc_score(is_class, score)), float(average_precision_score(is_class, score)))
    return areas, None


def _cohen_kappa(counts: np.ndarray) -> float:
    """Cohen's κ (Cohen 1960), (p_o − p_e) / (1 − p_e), of a confusion matrix; NaN where chance agreement p_e is 1."""
    total = int(counts.sum())
    chance = int((counts.sum(axis=1) * counts.sum(axis=0)).sum())  # p_e · N², in whole numbers so that p_e = 1 is exact
    return _ratio(int(np.trace(counts)) * total - chance, total * total - chance)


def _quasi_independent(missed: np.ndarray, said: np.ndarray, cells: np.ndarray) -> np.ndarray | None:
    """Expected counts (C, C), a_i · b_j in `cells` and 0 elsewhere, with row sums `missed` (C,) and column sums `said` (C,).

    Iterative proportional fitting (Deming and Stephan 1940): rows and columns are scaled to their sums in turn. None where
    the sums are not met after 10,000 rounds.
    """
    expected = cells.astype(np.float64)
    for _ in range(10_000):
        rows = expected.sum(axis=1)
        expected *= np.divide(missed, rows, out=np.zeros_like(rows), where=rows > 0)[:, None]
        columns = expected.sum(axis=0)
        expected *= np.divide(said, columns, out=np.zeros_like(columns), where=columns > 0)
        if np.abs(expected.sum(axis=1) - missed).max() <= 1e-11 * missed.sum():  # the columns are met already
            return expected
    return None


def _holm(p_values: np.ndarray) -> np.ndarray:
    """p-values (n,) corrected for being n (Holm 1979): in ascending order times n, n − 1, …, never falling, at most 1."""
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return corrected


def _target_scores(true: np.ndarray, predicted: np.ndarray, target: str) -> tuple[dict[str, float], dict[str, str]]:
    """The figures of one target over its labelled rows, (n,) and (n,), and the reasons of those that are NaN."""
    undefined = dict.fromkeys(AFFECT_SCORES, NAN)
    if true.size == 0:
        return undefined, dict.fromkeys(undefined, f"no rows with {target} labels")
    broken_rows = int((~(np.isfinite(true) & np.isfinite(predicted))).sum())
    if broken_rows:
        return undefined, dict.fromkeys(undefined, f"{target} is not finite in {broken_rows} of {true.size} labelled rows")

    error, nonzero = predicted - true, true != 0
    scores = {
        "rmse": math.sqrt(float(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
        "pearson": pearson_correlation(true, predicted),
        "sagr": sign_agreement(true, predicted),
        "ccc": concordance_ccc(true, predicted),
        "sagr_nonzero": sign_agreement(true[nonzero], predicted[nonzero]),
    }
    constant = [what for what, values in (("labels", true), ("predictions", predicted)) if _is_constant(values)]
    why = {
        "pearson": f"{' and '.join(constant)} of {target} do not vary",
        "ccc": f"labels and predictions of {target} are one and the same value",
        "sagr_nonzero": f"every {target} label is 0",
    }
    return scores, {key: reason for key, reason in why.items() if math.isnan(scores[key])}


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else NAN


def _ratios(numerators: np.ndarray, denominators: np.ndarray) -> list[float]:
    return [_ratio(numerator, denominator) for numerator, denominator in zip(numerators, denominators, strict=True)]


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return _ratio(math.fsum(defined), len(defined))


def _class_indices(values: ArrayLike, classes: int | None = None) -> np.ndarray:
    """Class indices as int64 (N,), wide enough for products. Raises ValueError for fractions, which a cast would cut off,
    and outside 0..classes - 1 where `classes` is given.
    """
    index = np.asarray(values)
    if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
        raise ValueError(f"class indices must be integers (N,), not {index.dtype} {index.shape}")
    if classes is not None and index.size and not (index.min() >= 0 and index.max() < classes):
        raise ValueError(f"class indices must be 0..{classes - 1}, not {index.min()}..{index.max()}")
    return index.astype(np.int64)


def _class_rows(y_true: ArrayLike, classes: int) -> np.ndarray:
    return confusion_counts(y_true, y_true, classes).sum(axis=1)  # (C,)


def _checked_probabilities(probabilities: ArrayLike, rows: int, classes: int) -> np.ndarray:
    values = np.asarray(probabilities, dtype=np.float64)
    if values.shape != (rows, classes):
        raise ValueError(f"probabilities must be ({rows}, {classes}), not {values.shape}")
    off = np.abs(values.sum(axis=1) - 1)
    if (off > 1e-3).any():  # NaN rows pass here; the scores that need them say so
        raise ValueError(f"rows of probabilities must sum to 1, one is off by {np.nanmax(off):.3g}: are these logits?")
    return values


def _paired_floats(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = np.asarray(y_true, dtype=np.float64), np.asarray(y_pred, dtype=np.float64)
    _check_same_length(true, predicted)
    return true, predicted


def _check_same_length(true: np.ndarray, predicted: np.ndarray) -> None:
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(f"y_true and y_pred must be (N,) of one length, not {true.shape} and {predicted.shape}")


def _has_no_answer(true: np.ndarray, predicted: np.ndarray) -> bool:
    return true.size == 0 or bool(np.isnan(true).any() or np.isnan(predicted).any())


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
