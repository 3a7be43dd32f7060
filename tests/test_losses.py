"""The losses against values worked out by hand and slow references in plain Python."""

import math

import pytest
import torch

from labels import LABEL_SETS
from losses import LOSSES, MultitaskLoss, build_loss, class_counts, class_weights, describe_weights, masked_mse

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
