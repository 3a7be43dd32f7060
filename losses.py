"""What a training step minimises: the classification loss, the valence/arousal loss, their sum, and class weights.

`LOSSES` and `WEIGHT_MODES` are tables: a further loss or weighting is a further row. Missing valence or arousal (NaN) is
masked, so that one network trains on data with and without it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from labels import LabelSet

# Weight of a class with `counts` training rows, before normalisation; `beta` is used by "effective" alone.
WEIGHT_MODES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "inv": lambda counts, beta: 1.0 / counts,
    "inv_sqrt": lambda counts, beta: counts.rsqrt(),
    "effective": lambda counts, beta: (1.0 - beta) / (1.0 - beta**counts),  # Cui et al. 2019
}


class LossParts(NamedTuple):
    """A step's loss and its two parts, scalars; `affect` is 0 where no label of the batch is known."""

    total: Tensor
    classification: Tensor
    affect: Tensor


def class_counts(indices: Sequence[int] | Tensor, classes: int) -> Tensor:
    """Rows per class, (classes,) float64, of class indices (N,)."""
    return torch.bincount(torch.as_tensor(indices, dtype=torch.long), minlength=classes).double()


def class_weights(counts: Tensor, mode: str, beta: float = 0.999) -> Tensor:
    """Weights (classes,) float32 by `mode` of WEIGHT_MODES, scaled so that the classes present average 1.

    A class without rows has weight 0: it can be no target. Raises KeyError for an unknown mode.
    """
    present = counts > 0
    weights = torch.zeros_like(counts)
    weights[present] = WEIGHT_MODES[mode](counts[present], beta)
    return (weights * present.sum() / weights.sum()).float()


def masked_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the known entries of target (N, 2), NaN = missing; 0 (with a gradient) where none is known."""
    known = ~target.isnan()
    difference = torch.where(known, predicted.float() - target.nan_to_num(), 0.0)
    return difference.square().sum() / known.sum().clamp(min=1)


# Loss name → whether it weights the classes.
LOSSES = {"ce": False, "wce": True}


class MultitaskLoss(nn.Module):
    """cross-entropy + reg_weight · MSE, the sum of the multitask report (there with reg_weight 0.5).

    weights: (classes,) or None; label_smoothing: in [0, 1).
    """

    weights: Tensor | None

    def __init__(self, *, weights: Tensor | None, label_smoothing: float, reg_weight: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.label_smoothing = label_smoothing
        self.reg_weight = reg_weight

    def forward(self, logits: Tensor, affect: Tensor | None, y_cls: Tensor, y_reg: Tensor) -> LossParts:
        """logits (N, classes), affect (N, 2) or None, y_cls (N,) long, y_reg (N, 2) with NaN where missing."""
        classification = functional.cross_entropy(
            logits.float(), y_cls, weight=self.weights, label_smoothing=self.label_smoothing
        )
        regression = masked_mse(affect, y_reg) if affect is not None else classification.new_zeros(())
        return LossParts(classification + self.reg_weight * regression, classification, regression)


def build_loss(
    loss: str, *, counts: Tensor, weight_mode: str, beta: float, label_smoothing: float, reg_weight: float
) -> MultitaskLoss:
    """The loss `loss` of LOSSES for a training split with these rows per class (classes,). Raises KeyError."""
    weights = class_weights(counts, weight_mode, beta) if LOSSES[loss] else None
    return MultitaskLoss(weights=weights, label_smoothing=label_smoothing, reg_weight=reg_weight)


def describe_weights(weights: Tensor | None, labels: LabelSet) -> str:
    """The class weights in words, for the log."""
    if weights is None:
        return "classes weigh the same"
    return "class weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in zip(labels.names, weights, strict=True))
