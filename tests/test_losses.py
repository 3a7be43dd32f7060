"""The losses against values worked out by hand and slow references in plain Python."""

import math

import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from labels import LABEL_SETS
from losses import (
    LOSSES,
    REG_LOSSES,
    MultitaskLoss,
    arcface_logits,
    build_loss,
    class_counts,
    class_weights,
    describe_weights,
    focal_loss,
    ldam_margins,
    log_priors,
    masked_ccc,
    masked_mse,
    row_weights,
    soft_cross_entropy,
)

COUNTS = torch.tensor([100.0, 25.0, 4.0], dtype=torch.float64)
NAN = math.nan


def slow_cross_entropy(logits, y_cls, weights, smoothing):
    """Σ over rows of the smoothed, weighted negative log-likelihood, divided by the weights of the targets."""
    total, divisor = 0.0, 0.0
    for row, target in zip(logits, y_cls, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        losses = [log_sum - value for value in row]
        total += (1 - smoothing) * weights[target] * losses[target]
        total += smoothing / len(row) * sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        divisor += weights[target]
    return total / divisor


def slow_masked_mse(predicted, target):
    """Mean of the squared differences where the target is known, 0 where none is."""
    squares = [
        (p - t) ** 2
        for p_row, t_row in zip(predicted, target, strict=True)
        for p, t in zip(p_row, t_row, strict=True)
        if not math.isnan(t)
    ]
    return sum(squares) / len(squares) if squares else 0.0


def random_batch(seed, rows=17, classes=5):
    """Logits, affect, class indices and affect labels, about a third of these missing."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    affect = torch.randn(rows, 2, generator=generator)
    y_cls = torch.randint(classes, (rows,), generator=generator)
    y_reg = 2 * torch.rand(rows, 2, generator=generator) - 1
    y_reg[torch.rand(rows, 2, generator=generator) < 0.3] = NAN
    return logits, affect, y_cls, y_reg


def test_class_counts() -> None:
    assert class_counts([0, 2, 2, 4], 6).tolist() == [1, 0, 2, 0, 1, 0]
    assert class_counts(torch.tensor([1, 1]), 3).dtype == torch.float64


@pytest.mark.parametrize(
    ("mode", "raw"),
    [
        ("inv", [1 / 100, 1 / 25, 1 / 4]),
        ("inv_sqrt", [1 / 10, 1 / 5, 1 / 2]),
        ("effective", [0.1 / (1 - 0.9**100), 0.1 / (1 - 0.9**25), 0.1 / (1 - 0.9**4)]),
    ],
)
def test_class_weights(mode: str, raw: list[float]) -> None:
    weights = class_weights(COUNTS, mode, 0.9)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([3 * value / sum(raw) for value in raw], rel=1e-6)


def test_inverse_weights_in_numbers() -> None:
    assert class_weights(torch.tensor([10.0, 30.0]).double(), "inv").tolist() == pytest.approx([1.5, 0.5])
    assert class_weights(torch.tensor([1.0, 9.0]).double(), "inv_sqrt").tolist() == pytest.approx([1.5, 0.5])


@pytest.mark.parametrize("mode", ["inv", "inv_sqrt", "effective"])
def test_weights_of_present_classes_average_one(mode: str) -> None:
    weights = class_weights(torch.tensor([7.0, 0.0, 3.0, 90.0]).double(), mode)
    assert weights[1] == 0
    assert weights.sum().item() == pytest.approx(3)
    assert weights[2] > weights[0] > weights[3]


def test_effective_number_survives_large_counts() -> None:
    # float32 would round 1 - 0.999999^1 to a few digits.
    weights = class_weights(torch.tensor([1.0, 1_000_000.0]).double(), "effective", 0.999999)
    ratio = (1 - 0.999999**1_000_000) / (1 - 0.999999)
    assert (weights[0] / weights[1]).item() == pytest.approx(ratio, rel=1e-5)


def test_unknown_mode_is_an_error() -> None:
    with pytest.raises(KeyError):
        class_weights(COUNTS, "inverse")


def test_masked_mse_by_hand() -> None:
    predicted = torch.tensor([[0.5, 0.0], [1.0, 9.0]])
    target = torch.tensor([[0.0, 1.0], [0.0, NAN]])
    assert masked_mse(predicted, target).item() == pytest.approx((0.25 + 1 + 1) / 3)


@pytest.mark.parametrize("seed", range(10))
def test_masked_mse_equals_the_loop(seed: int) -> None:
    _, affect, _, y_reg = random_batch(seed)
    assert y_reg.isnan().any()
    affect.requires_grad_()
    loss = masked_mse(affect, y_reg)
    assert loss.item() == pytest.approx(slow_masked_mse(affect.tolist(), y_reg.tolist()), rel=1e-5)
    loss.backward()
    known = ~y_reg.isnan()
    expected = torch.where(known, 2 * (affect.detach() - y_reg.nan_to_num()) / known.sum(), 0.0)
    assert torch.allclose(affect.grad, expected, atol=1e-7)  # type: ignore[arg-type]


def test_nothing_known_gives_zero_and_a_zero_gradient() -> None:
    affect = torch.randn(4, 2, requires_grad=True)
    loss = masked_mse(affect, torch.full((4, 2), NAN))
    assert loss.item() == 0
    loss.backward()
    assert affect.grad is not None and affect.grad.tolist() == [[0, 0]] * 4


def test_masked_mse_of_reduced_precision_is_float32() -> None:
    loss = masked_mse(torch.ones(2, 2, dtype=torch.bfloat16), torch.zeros(2, 2))
    assert loss.dtype == torch.float32 and loss.item() == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_multitask_loss_equals_the_slow_reference(seed: int, weighted: bool, smoothing: float) -> None:
    logits, affect, y_cls, y_reg = random_batch(seed)
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5, 0.3]) if weighted else None
    criterion = MultitaskLoss(weights=weights, label_smoothing=smoothing, reg_weight=0.5)
    parts = criterion(logits, affect, y_cls, y_reg)
    expected = slow_cross_entropy(
        logits.tolist(), y_cls.tolist(), weights.tolist() if weights is not None else [1.0] * 5, smoothing
    )
    regression = slow_masked_mse(affect.tolist(), y_reg.tolist())
    assert parts.classification.item() == pytest.approx(expected, rel=1e-5)
    assert parts.affect.item() == pytest.approx(regression, rel=1e-5)
    assert parts.total.item() == pytest.approx(expected + 0.5 * regression, rel=1e-5)


def test_without_the_head_the_affect_part_is_zero() -> None:
    logits, _, y_cls, y_reg = random_batch(0)
    parts = MultitaskLoss(weights=None, label_smoothing=0.0, reg_weight=0.5)(logits, None, y_cls, y_reg)
    assert parts.affect.item() == 0
    assert parts.total.item() == parts.classification.item()


def test_loss_names_decide_the_weighting() -> None:
    options = {"weight_mode": "inv", "beta": 0.999, "label_smoothing": 0.1, "reg_weight": 0.5}
    losses = {name: build_loss(name, counts=COUNTS, **options) for name in LOSSES}  # type: ignore[arg-type]
    assert losses["ce"].weights is None
    assert losses["wce"].weights is not None and torch.equal(losses["wce"].weights, class_weights(COUNTS, "inv"))
    assert (losses["wce"].label_smoothing, losses["wce"].reg_weight) == (0.1, 0.5)
    with pytest.raises(KeyError):
        build_loss("mse", counts=COUNTS, **options)  # type: ignore[arg-type]


def test_weights_in_words() -> None:
    labels = LABEL_SETS["fer4"]
    assert describe_weights(None, labels) == "classes weigh the same"
    words = describe_weights(torch.tensor([0.5, 1.0, 1.25, 1.25]), labels)
    assert words == "class weights: angry 0.50, sad 1.00, happy 1.25, neutral 1.25"


# Focal loss, margins, logit adjustment


def slow_focal(logits, y_cls, weights, smoothing, gamma):
    """−Σ_c q_c w_c (1 − p_c)^γ log p_c over the rows, divided by the weights of the targets."""
    total, divisor = 0.0, 0.0
    for row, target in zip(logits, y_cls, strict=True):
        divisor += weights[target]
        whole = sum(math.exp(value) for value in row)
        for index, value in enumerate(row):
            p = math.exp(value) / whole
            q = (1 - smoothing if index == target else 0.0) + smoothing / len(row)
            total -= q * weights[index] * (1 - p) ** gamma * math.log(p)
    return total / divisor


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_equals_the_slow_reference(weighted: bool, smoothing: float, gamma: float) -> None:
    logits, _, y_cls, _ = random_batch(3)
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5, 0.3]) if weighted else None
    found = focal_loss(logits, y_cls, gamma=gamma, weights=weights, label_smoothing=smoothing)
    plain = weights.tolist() if weights is not None else [1.0] * 5
    assert found.item() == pytest.approx(slow_focal(logits.tolist(), y_cls.tolist(), plain, smoothing, gamma), rel=1e-4)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, _, y_cls, _ = random_batch(4)
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5, 0.3])
    expected = torch.nn.functional.cross_entropy(logits, y_cls, weight=weights, label_smoothing=0.1)
    assert focal_loss(logits, y_cls, gamma=0.0, weights=weights, label_smoothing=0.1).item() == pytest.approx(
        expected.item()
    )


def test_focal_loss_of_a_certain_row_has_a_finite_gradient() -> None:
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0]), gamma=0.5, weights=None, label_smoothing=0.0).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_arcface_adds_its_margin_to_the_angle(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cosines = 2 * torch.rand(40, 4, generator=generator) - 1
    y_cls = torch.randint(4, (40,), generator=generator)
    found = arcface_logits(30 * cosines, y_cls, scale=30.0, margin=0.5)
    for row, (angles, target) in enumerate(zip(cosines.acos().tolist(), y_cls.tolist(), strict=True)):
        expected = [math.cos(angle) for angle in angles]
        if angles[target] + 0.5 <= math.pi:
            expected[target] = math.cos(angles[target] + 0.5)
        else:
            expected[target] -= 0.5 * math.sin(0.5)
        assert found[row].tolist() == pytest.approx([30 * value for value in expected], abs=2e-2)


def test_arcface_falls_with_the_angle_and_keeps_a_gradient() -> None:
    angles = torch.linspace(0.0, math.pi, 200)
    logits = (10 * angles.cos())[:, None].requires_grad_()
    moved = arcface_logits(logits, torch.zeros(200, dtype=torch.long), scale=10.0, margin=0.5)
    steps = moved.detach().squeeze().diff()
    assert (steps <= 1e-4).all()
    assert (moved.detach() < logits.detach() + 1e-4).all()  # always harder
    moved.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_arcface_without_margin_changes_nothing() -> None:
    logits = 30 * torch.tensor([[0.5, -0.2], [0.9, 0.1]])
    assert torch.allclose(arcface_logits(logits, torch.tensor([1, 0]), scale=30.0, margin=0.0), logits, atol=1e-5)


def test_ldam_margins_fall_with_the_fourth_root() -> None:
    margins = ldam_margins(torch.tensor([10_000.0, 625.0, 16.0, 0.0]).double())
    assert margins.tolist() == pytest.approx([0.5 * 2 / 10, 0.5 * 2 / 5, 0.5, 0.0])


def test_ldam_takes_the_margin_from_the_true_class() -> None:
    criterion = build_loss("ldam", counts=torch.tensor([16.0, 10_000.0]).double(), scale=20.0, reg_weight=0.5)
    criterion.weighting = False
    logits, y_cls = torch.tensor([[3.0, 1.0], [2.0, 4.0]]), torch.tensor([0, 1])
    rows = [(3 - 20 * 0.5, 1.0, 0), (2.0, 4 - 20 * 0.1, 1)]
    expected = sum(math.log(math.exp(a) + math.exp(b)) - (a, b)[target] for a, b, target in rows) / 2
    assert criterion.classification(logits, y_cls).item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_can_wait() -> None:
    logits, _, y_cls, _ = random_batch(5, classes=3)
    criterion = build_loss("wce", counts=COUNTS, weight_mode="inv", reg_weight=0.5)
    plain, weighted = build_loss("ce", counts=COUNTS, reg_weight=0.5), criterion.classification(logits, y_cls)
    criterion.weighting = False
    assert criterion.classification(logits, y_cls) == plain.classification(logits, y_cls) != weighted


def test_logit_adjustment_adds_log_priors() -> None:
    counts = torch.tensor([60.0, 30.0, 10.0]).double()
    criterion = build_loss("logit_adjusted", counts=counts, tau=1.5, reg_weight=0.5)
    logits, y_cls = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([2])
    moved = [1 + 1.5 * math.log(0.6), 2 + 1.5 * math.log(0.3), 0.5 + 1.5 * math.log(0.1)]
    expected = math.log(sum(math.exp(value) for value in moved)) - moved[2]
    assert criterion.classification(logits, y_cls).item() == pytest.approx(expected, rel=1e-5)
    assert log_priors(torch.tensor([3.0, 0.0]).double()).exp().tolist() == pytest.approx([3 / 3.5, 0.5 / 3.5])


def test_arcface_margin_belongs_to_its_head() -> None:
    logits, y_cls = 30 * torch.tensor([[0.4, 0.1, -0.3]]), torch.tensor([0])
    with_margin = build_loss("ce", counts=COUNTS, scale=30.0, arcface_margin=0.5, reg_weight=0.5)
    expected = arcface_logits(logits, y_cls, scale=30.0, margin=0.5).log_softmax(dim=1)[0, 0]
    assert with_margin.classification(logits, y_cls).item() == pytest.approx(-expected.item(), rel=1e-5)


# Valence and arousal by concordance


def slow_ccc(pairs):
    """1 − 2·cov / (var + var + (mean − mean)²), population moments."""
    n = len(pairs)
    p_mean, t_mean = sum(p for p, _ in pairs) / n, sum(t for _, t in pairs) / n
    covariance = sum((p - p_mean) * (t - t_mean) for p, t in pairs) / n
    p_var, t_var = sum((p - p_mean) ** 2 for p, _ in pairs) / n, sum((t - t_mean) ** 2 for _, t in pairs) / n
    return 1 - 2 * covariance / (p_var + t_var + (p_mean - t_mean) ** 2)


@pytest.mark.parametrize("seed", range(6))
def test_masked_ccc_equals_the_slow_reference(seed: int) -> None:
    _, affect, _, y_reg = random_batch(seed)
    expected = [
        slow_ccc([(p, t) for p, t in zip(affect[:, k].tolist(), y_reg[:, k].tolist(), strict=True) if not math.isnan(t)])
        for k in (0, 1)
    ]
    affect.requires_grad_()
    loss = masked_ccc(affect, y_reg)
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    loss.backward()
    assert affect.grad is not None and (affect.grad[y_reg.isnan()] == 0).all() and affect.grad.abs().sum() > 0


def test_ccc_of_too_little_is_left_out() -> None:
    predicted = torch.tensor([[0.1, 0.3], [0.4, -0.2], [0.2, 0.9]], requires_grad=True)
    one = torch.tensor([[0.1, NAN], [0.4, -0.2], [0.3, NAN]])  # one known arousal: no variance
    assert masked_ccc(predicted, one).item() == pytest.approx(slow_ccc([(0.1, 0.1), (0.4, 0.4), (0.2, 0.3)]), rel=1e-4)
    nothing = masked_ccc(predicted, torch.full((3, 2), NAN))
    assert nothing.item() == 0
    nothing.backward()
    assert predicted.grad is not None and predicted.grad.tolist() == [[0, 0]] * 3


def test_regression_losses_add_up() -> None:
    _, affect, _, y_reg = random_batch(2)
    both = REG_LOSSES["ccc+mse"](affect, y_reg)
    assert both.item() == pytest.approx((masked_ccc(affect, y_reg) + masked_mse(affect, y_reg)).item())
    assert REG_LOSSES["mse"](affect, y_reg) == masked_mse(affect, y_reg)
    logits, affect, y_cls, y_reg = random_batch(2)
    parts = build_loss("ce", counts=torch.ones(5), reg_loss="ccc", reg_weight=2.0)(logits, affect, y_cls, y_reg)
    assert parts.total.item() == pytest.approx(parts.classification.item() + 2 * masked_ccc(affect, y_reg).item(), rel=1e-5)


def test_soft_cross_entropy_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 8, generator=generator, requires_grad=True)
    target = torch.rand(6, 8, generator=generator)
    target = target / target.sum(dim=1, keepdim=True)
    target[1], target[4] = math.nan, math.nan
    expected = 0.0
    for row in (0, 2, 3, 5):
        total = sum(math.exp(value) for value in logits[row].tolist())
        expected -= sum(
            share * math.log(math.exp(value) / total)
            for share, value in zip(target[row].tolist(), logits[row].tolist(), strict=True)
        )
    loss = soft_cross_entropy(logits, target)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    loss.backward()
    gradient = logits.grad
    assert gradient is not None and gradient.isfinite().all() and (gradient[[1, 4]] == 0).all() and gradient[0].any()
    hard = torch.nn.functional.one_hot(torch.tensor([3, 1, 0, 7, 2, 2]), 8).float()
    assert soft_cross_entropy(logits, hard).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, hard.argmax(dim=1)).item()
    )
    nothing = soft_cross_entropy(logits, torch.full((6, 8), math.nan))
    assert nothing.item() == 0 and nothing.requires_grad


def test_votes_are_a_third_part_of_the_loss() -> None:
    logits, affect, y_cls, y_reg = random_batch(2)
    votes, y_votes = torch.randn(len(y_cls), 8), torch.full((len(y_cls), 8), 1 / 8)
    criterion = build_loss("ce", counts=torch.ones(5), reg_weight=2.0, votes_weight=0.25)
    parts = criterion(logits, affect, y_cls, y_reg, votes, {"votes": y_votes})
    plain = criterion(logits, affect, y_cls, y_reg)
    assert parts.votes.item() == pytest.approx(soft_cross_entropy(votes, y_votes).item()) and plain.votes.item() == 0
    assert parts.total.item() == pytest.approx(plain.total.item() + 0.25 * parts.votes.item(), rel=1e-5)


def test_a_teacher_of_votes_has_its_share_of_their_loss() -> None:
    """Rows without votes learn from the teacher alone; where it has no share, what it says of votes counts for nothing."""
    generator = torch.Generator().manual_seed(4)
    logits, votes = torch.randn(6, 5, generator=generator), torch.randn(6, 8, generator=generator)
    soft = {"votes": torch.rand(6, 8, generator=generator).softmax(dim=1), "teacher": logits.flip(0).softmax(dim=1)}
    soft["votes"][:2] = math.nan
    said = torch.rand(6, 8, generator=generator).softmax(dim=1)
    batch = (logits, None, torch.arange(6) % 5, torch.full((6, 2), math.nan), votes)
    for share in (0.0, 0.3):
        criterion = build_loss("ce", counts=torch.ones(5), reg_weight=0.0, votes_weight=2.0, teacher_weight=share)
        voted = soft_cross_entropy(votes[2:], soft["votes"][2:]).item()
        expected = (1 - share) * voted + share * soft_cross_entropy(votes, said).item()
        loss = criterion(*batch, soft | {"teacher_votes": said})
        assert loss.votes.item() == pytest.approx(expected)
        assert loss.total.item() == pytest.approx(loss.classification.item() + 2.0 * expected)


def test_a_teacher_has_its_share_of_the_classification_loss() -> None:
    logits, affect, y_cls, y_reg = random_batch(2)
    soft = {"teacher": torch.rand(logits.shape).softmax(dim=1)}
    plain = build_loss("ce", counts=torch.ones(5), reg_weight=2.0, label_smoothing=0.1)(logits, affect, y_cls, y_reg)
    criterion = build_loss("ce", counts=torch.ones(5), reg_weight=2.0, label_smoothing=0.1, teacher_weight=0.3)
    taught = criterion(logits, affect, y_cls, y_reg, None, soft)
    expected = 0.7 * plain.classification.item() + 0.3 * soft_cross_entropy(logits, soft["teacher"]).item()
    assert taught.classification.item() == pytest.approx(expected, rel=1e-5)
    assert criterion(logits, affect, y_cls, y_reg).classification.item() == pytest.approx(plain.classification.item())


# Samplers


def test_balanced_sampler_draws_by_one_over_the_root_of_the_frequency() -> None:
    y_cls = torch.tensor([0] * 900 + [1] * 100 + [2] * 25)
    weights = row_weights(y_cls, 3, "balanced")
    assert weights is not None
    assert [weights[index].item() for index in (0, 950, 1020)] == pytest.approx([1 / 30, 1 / 10, 1 / 5])
    generator = torch.Generator().manual_seed(0)
    drawn = y_cls[list(WeightedRandomSampler(weights.tolist(), 20_000, generator=generator))]
    # A class is drawn in proportion to n / √n = √n: 30, 10 and 5 of 45.
    shares = class_counts(drawn, 3) / 20_000
    assert shares.tolist() == pytest.approx([30 / 45, 10 / 45, 5 / 45], abs=0.012)  # 3.5 standard errors
    assert row_weights(y_cls, 3, "default") is None
