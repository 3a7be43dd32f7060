"""What a training step minimises: the classification loss, the valence/arousal loss, their sum; class weights, samplers.

`LOSSES`, `REG_LOSSES` and `WEIGHT_MODES` are tables: a further loss or weighting is a further row. Missing valence or
arousal (NaN) is masked, so that one network trains on data with and without it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from labels import LabelSet

LDAM_MAX_MARGIN = 0.5  # of the rarest class, as a difference of cosines (Cao et al. 2019)

# --- class weights and samplers -----------------------------------------------------------------------------------------

# Weight of a class with `counts` training rows, before normalisation; `beta` is used by "effective" alone.
WEIGHT_MODES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "inv": lambda counts, beta: 1.0 / counts,
    "inv_sqrt": lambda counts, beta: counts.rsqrt(),
    "effective": lambda counts, beta: (1.0 - beta) / (1.0 - beta**counts),  # Cui et al. 2019
}

# Weight with which a row is drawn, by the rows of its class; None draws every row once an epoch.
SAMPLERS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,
    "balanced": lambda counts: counts.rsqrt(),  # the imbalance-aware document's: 1/√frequency, not 1/frequency
}


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


def row_weights(y_cls: Tensor, classes: int, sampler: str) -> Tensor | None:
    """How often each row (N,) is to be drawn, relative to the others, (N,) float64; None where each comes once an epoch.

    Raises KeyError for a name that SAMPLERS lacks.
    """
    weigh = SAMPLERS[sampler]
    return None if weigh is None else weigh(class_counts(y_cls, classes))[y_cls]


# --- the classification loss --------------------------------------------------------------------------------------------


def focal_loss(logits: Tensor, y: Tensor, *, gamma: float, weights: Tensor | None, label_smoothing: float) -> Tensor:
    """Focal loss (Lin et al. 2017) on softmax probabilities p: the mean of −Σ_c q_c w_c (1 − p_c)^γ log p_c.

    logits (N, classes), y (N,) long; q is the one-hot target, smoothed; with class weights w (classes,) the mean is the
    weighted one, Σ over rows / Σ w_y, as in cross_entropy, which this is at γ = 0.
    """
    log_p = logits.log_softmax(dim=1)
    classes = logits.shape[1]
    target = functional.one_hot(y, classes) * (1.0 - label_smoothing) + label_smoothing / classes  # (N, classes)
    w = torch.ones_like(log_p[0]) if weights is None else weights
    terms = target * w * (1.0 - log_p.exp()).clamp(min=1e-7).pow(gamma) * log_p
    return -terms.sum() / w[y].sum()


def arcface_logits(logits: Tensor, y: Tensor, *, scale: float, margin: float) -> Tensor:
    """Additive angular margin (Deng et al. 2019): s·cos θ of the true class becomes s·cos(θ + m), the others stay.

    logits (N, classes) are s·cos θ, y (N,) long, margin in radians. Where θ + m would pass π, the true class becomes
    s·(cos θ − m·sin m) instead, which keeps falling with θ.
    """
    cosine = (logits.gather(1, y[:, None]) / scale).clamp(-1.0, 1.0)  # (N, 1)
    sine = (1.0 - cosine.square()).clamp(min=1e-7).sqrt()  # the bound keeps its gradient finite
    moved = cosine * math.cos(margin) - sine * math.sin(margin)  # cos(θ + m)
    moved = torch.where(cosine > -math.cos(margin), moved, cosine - margin * math.sin(margin))
    return logits.scatter(1, y[:, None], scale * moved)


def ldam_margins(counts: Tensor) -> Tensor:
    """Label-distribution-aware margins Δ_c ∝ n_c^(−1/4), the largest LDAM_MAX_MARGIN (Cao et al. 2019): (classes,) float32.

    A class without rows gets 0.
    """
    present = counts > 0
    margins = torch.where(present, counts.clamp(min=1).pow(-0.25), 0.0)
    return (margins * (LDAM_MAX_MARGIN / margins.max())).float()


def log_priors(counts: Tensor) -> Tensor:
    """log of each class's share of the training rows, (classes,) float32; a class without rows counts as half a row."""
    filled = counts.clamp(min=0.5)
    return (filled / filled.sum()).log().float()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of −Σ_c q_c log p_c over the rows whose target q is known; 0 (with a gradient) where none is.

    logits (N, classes); target (N, classes) shares that sum to 1, NaN where missing.
    """
    known = ~target.isnan().any(dim=1)
    terms = -(target.nan_to_num() * logits.float().log_softmax(dim=1)).sum(dim=1)
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)


class LossRow(NamedTuple):
    """A row of LOSSES: what the loss makes use of."""

    weighted: bool = False  # by --weight_mode, from --drw_epoch on
    focal: bool = False
    margins: bool = False  # LDAM's, which are differences of cosines
    adjusted: bool = False  # by τ times the log priors, as if all classes were equally frequent (Menon et al. 2021)


LOSSES = {
    "ce": LossRow(),
    "wce": LossRow(weighted=True),
    "focal": LossRow(weighted=True, focal=True),  # weighted as in the imbalance-aware document
    "ldam": LossRow(weighted=True, margins=True),
    "logit_adjusted": LossRow(adjusted=True),
}

# --- valence and arousal ------------------------------------------------------------------------------------------------


def masked_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the known entries of target (N, 2), NaN = missing; 0 (with a gradient) where none is known."""
    known = ~target.isnan()
    difference = torch.where(known, predicted.float() - target.nan_to_num(), 0.0)
    return difference.square().sum() / known.sum().clamp(min=1)


def masked_ccc(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − CCC (Lin 1989, population moments) over a batch, the mean of valence and arousal; in [0, 2].

    predicted, target (N, 2), NaN = missing. A column with fewer than two known entries has no variance and does not
    count; 0 (with a gradient) where both have not.
    """
    known = ~target.isnan()
    count = known.sum(dim=0).clamp(min=1)
    predicted = torch.where(known, predicted.float(), 0.0)
    target = target.nan_to_num()
    p_mean, t_mean = predicted.sum(dim=0) / count, target.sum(dim=0) / count
    p_off, t_off = torch.where(known, predicted - p_mean, 0.0), torch.where(known, target - t_mean, 0.0)
    p_var, t_var = p_off.square().sum(dim=0) / count, t_off.square().sum(dim=0) / count
    covariance = (p_off * t_off).sum(dim=0) / count
    ccc = 2.0 * covariance / (p_var + t_var + (p_mean - t_mean).square() + 1e-8)
    usable = known.sum(dim=0) > 1
    return ((1.0 - ccc) * usable).sum() / usable.sum().clamp(min=1)


REG_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": masked_mse,
    "ccc": masked_ccc,
    "ccc+mse": lambda predicted, target: masked_ccc(predicted, target) + masked_mse(predicted, target),
}

# --- their sum ----------------------------------------------------------------------------------------------------------


class LossParts(NamedTuple):
    """A step's loss and its parts, scalars; `affect` and `votes` are 0 where no label of the batch is known."""

    total: Tensor
    classification: Tensor
    affect: Tensor
    votes: Tensor


class MultitaskLoss(nn.Module):
    """classification + reg_weight · affect, the sum of the multitask report (there cross-entropy, MSE and 0.5), and
    votes_weight · the cross-entropy of the FER+ votes. With a teacher's probabilities a share teacher_weight of the
    classification loss, and of the votes' where it knows them, is the cross-entropy of those (Hinton et al. 2015, at
    temperature 1).

    weights, margins and offsets: (classes,) or None; margins are taken from the true class's logit, offsets added to all
    logits; arcface: (scale, margin) or None; focal_gamma: None for cross-entropy; label_smoothing: in [0, 1). `weighting`
    switches the class weights, for their deferred start.
    """

    weights: Tensor | None
    margins: Tensor | None
    offsets: Tensor | None

    def __init__(
        self,
        *,
        weights: Tensor | None = None,
        margins: Tensor | None = None,
        offsets: Tensor | None = None,
        arcface: tuple[float, float] | None = None,
        focal_gamma: float | None = None,
        label_smoothing: float = 0.0,
        reg_loss: str = "mse",
        reg_weight: float,
        votes_weight: float = 0.0,
        teacher_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("margins", margins)
        self.register_buffer("offsets", offsets)
        self.arcface = arcface
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing
        self.reg_loss = REG_LOSSES[reg_loss]
        self.reg_weight = reg_weight
        self.votes_weight = votes_weight
        self.teacher_weight = teacher_weight
        self.weighting = True

    def classification(self, logits: Tensor, y_cls: Tensor) -> Tensor:
        """The classification loss of logits (N, classes) and y_cls (N,) long, a scalar."""
        logits = logits.float()
        if self.arcface is not None:
            logits = arcface_logits(logits, y_cls, scale=self.arcface[0], margin=self.arcface[1])
        if self.margins is not None:
            logits = logits - functional.one_hot(y_cls, logits.shape[1]) * self.margins
        if self.offsets is not None:
            logits = logits + self.offsets
        weights = self.weights if self.weighting else None
        if self.focal_gamma is None:
            return functional.cross_entropy(logits, y_cls, weight=weights, label_smoothing=self.label_smoothing)
        return focal_loss(logits, y_cls, gamma=self.focal_gamma, weights=weights, label_smoothing=self.label_smoothing)

    def forward(
        self,
        logits: Tensor,
        affect: Tensor | None,
        y_cls: Tensor,
        y_reg: Tensor,
        votes: Tensor | None = None,
        soft: Mapping[str, Tensor] | None = None,
    ) -> LossParts:
        """logits (N, classes), affect (N, 2) or None, y_cls (N,) long, y_reg (N, 2) with NaN where missing, votes (N, 8)
        logits or None; soft: shares "votes" (N, 8), "teacher" (N, classes) and "teacher_votes" (N, 8), NaN in rows where
        they are missing."""
        soft = soft or {}
        classification = self.classification(logits, y_cls)
        if self.teacher_weight and "teacher" in soft:
            taught = soft_cross_entropy(logits, soft["teacher"])
            classification = torch.lerp(classification, taught, self.teacher_weight)
        nothing = classification.new_zeros(())
        regression = self.reg_loss(affect, y_reg) if affect is not None else nothing
        voted = soft_cross_entropy(votes, soft["votes"]) if votes is not None and "votes" in soft else nothing
        if self.teacher_weight and votes is not None and "teacher_votes" in soft:
            voted = torch.lerp(voted, soft_cross_entropy(votes, soft["teacher_votes"]), self.teacher_weight)
        total = classification + self.reg_weight * regression + self.votes_weight * voted
        return LossParts(total, classification, regression, voted)


def build_loss(
    loss: str,
    *,
    counts: Tensor,
    weight_mode: str = "inv_sqrt",
    beta: float = 0.999,
    tau: float = 1.0,
    focal_gamma: float = 2.0,
    scale: float = 30.0,
    arcface_margin: float | None = None,
    label_smoothing: float = 0.0,
    reg_loss: str = "mse",
    reg_weight: float,
    votes_weight: float = 0.0,
    teacher_weight: float = 0.0,
) -> MultitaskLoss:
    """The loss `loss` of LOSSES for a training split with these rows per class (classes,).

    `scale` is that of a cosine head, for margins; `arcface_margin` is None without that head. Raises KeyError.
    """
    row = LOSSES[loss]
    return MultitaskLoss(
        weights=class_weights(counts, weight_mode, beta) if row.weighted else None,
        margins=scale * ldam_margins(counts) if row.margins else None,
        offsets=tau * log_priors(counts) if row.adjusted else None,
        arcface=None if arcface_margin is None else (scale, arcface_margin),
        focal_gamma=focal_gamma if row.focal else None,
        label_smoothing=label_smoothing,
        reg_loss=reg_loss,
        reg_weight=reg_weight,
        votes_weight=votes_weight,
        teacher_weight=teacher_weight,
    )


def describe_weights(weights: Tensor | None, labels: LabelSet) -> str:
    """The class weights in words, for the log."""
    if weights is None:
        return "classes weigh the same"
    return "class weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in zip(labels.names, weights, strict=True))
