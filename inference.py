"""What networks say of the rows of a data set, and what may be done with their probabilities afterwards.

Several views of each picture, the mean of an ensemble, merged classes, adjusted logits, a temperature: each step takes
`Predictions` and returns `Predictions`. What a step has to choose (τ, the temperature) it chooses on validation rows.

    python evaluate.py weights/fernet_votes.onnx.gz --tta ten_crop --calibrate --out runs/ten_crop
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
from labels import LabelSet, remap, without_source
from models import ExpressionNet, memory_format

BATCH_SIZE = 64  # of training's validation, too: another one changes the last digits
TAUS = tuple(step / 20 for step in range(41))  # strengths of logit adjustment that are tried: 0 to 2
TEMPERATURES = (0.05, 20.0)  # between which the temperature is sought


class Predictions(NamedTuple):
    """What a network said of N rows: class indices (N,), probabilities (N, C) float64 and logits (N, C) float32,
    affect_true (N, 2) with NaN where missing, affect_pred (N, 2) and votes_pred, logits (N, 8), or None without that
    head."""

    y_true: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray
    affect_true: np.ndarray
    affect_pred: np.ndarray | None
    votes_pred: np.ndarray | None = None

    @property
    def y_pred(self) -> np.ndarray:
        """The most probable class of each row, (N,)."""
        return self.probabilities.argmax(axis=1)


# Views


def with_margin(images: Tensor) -> Tensor:
    """Images (N, C, H, W) with their edges repeated for 1/24 of their width all round: 2 of 48 px."""
    step = max(1, round(images.shape[-1] / 24))
    return functional.pad(images, (step, step, step, step), mode="replicate")


def five_crops(images: Tensor) -> list[Tensor]:
    """Images (N, C, H, W) as they are, then moved into each corner of `with_margin`."""
    wide = with_margin(images)
    height, width = images.shape[-2:]
    corners = [(top, left) for top in (0, wide.shape[-2] - height) for left in (0, wide.shape[-1] - width)]
    return [images, *(wide[..., top : top + height, left : left + width] for top, left in corners)]


def ten_crops(images: Tensor) -> list[Tensor]:
    """`five_crops` and the mirror image of each."""
    return [view for crop in five_crops(images) for view in (crop, crop.flip(-1))]


def with_surroundings(images: Tensor) -> Tensor:
    """Images (N, C, H, W) seen from further away: `with_margin`, in the same size."""
    return functional.interpolate(with_margin(images), images.shape[-2:], mode="bilinear", antialias=True)


# Test-time augmentation: the views of a batch (N, C, H, W) whose probabilities are averaged, the plain one first.
VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "none": lambda images: [images],
    "flip": lambda images: [images, images.flip(-1)],
    "ten_crop": ten_crops,
    "two_scales": lambda images: ten_crops(images) + ten_crops(with_surroundings(images)),
}


def run_views(
    model: ExpressionNet, loader: DataLoader, *, device: torch.device, tta: str, label: str = "scoring"
) -> list[Predictions]:
    """Run the network in eval mode over a loader in row order; one Predictions a view of VIEWS[tta].

    The model is left in eval mode on `device`.
    """
    layout = memory_format(device)
    model.eval().to(device).to(memory_format=layout)  # type: ignore[call-overload]
    said: dict[str, list[np.ndarray]] = {"logits": [], "affect": [], "votes": []}  # of (views, rows, …)
    y_true, affect_true = [], []
    # TensorFloat-32, cuDNN's default for convolutions, has a mantissa of 10 bits.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for images, y_cls, y_reg, _ in tqdm(loader, desc=label, unit="batch", leave=False, disable=None):
            images = images.to(device, non_blocking=True, memory_format=layout)
            outputs = [model(view.contiguous(memory_format=layout)) for view in VIEWS[tta](images)]
            for name, parts in said.items():
                if getattr(outputs[0], name) is not None:
                    parts.append(np.stack([getattr(output, name).float().cpu().numpy() for output in outputs]))
            y_true.append(y_cls.numpy())
            affect_true.append(y_reg.numpy())
    logits = np.concatenate(said.pop("logits"), axis=1)  # (V, N, C)
    others = [np.concatenate(parts, axis=1) if parts else [None] * len(logits) for parts in said.values()]  # (V, N, …)
    rows = np.concatenate(y_true), np.concatenate(affect_true)
    return [
        Predictions(rows[0], metrics.softmax(view), view, rows[1], *more)
        for view, *more in zip(logits, *others, strict=True)
    ]


def run_inference(model: ExpressionNet, loader: DataLoader, *, device: torch.device, label: str = "scoring") -> Predictions:
    """Run the network in eval mode over a loader in row order. The model is left in eval mode on `device`."""
    return run_views(model, loader, device=device, tta="none", label=label)[0]


# Steps


def average(members: Sequence[Predictions]) -> Predictions:
    """The mean of the probabilities of an ensemble's members, or of the views of one network, and of valence and arousal
    where all have them; a single one as it is."""
    if len(members) == 1:
        return members[0]
    probabilities = np.mean([member.probabilities for member in members], axis=0)
    affect = [member.affect_pred for member in members if member.affect_pred is not None]
    return members[0]._replace(
        probabilities=probabilities,
        logits=np.log(probabilities.clip(min=1e-12)).astype(np.float32),
        affect_pred=np.mean(affect, axis=0) if len(affect) == len(members) else None,
    )


def adjust(predictions: Predictions, priors: np.ndarray, tau: float) -> Predictions:
    """Post hoc logit adjustment (Menon et al. 2021): τ times the log of each class's share of the training rows (C,) is
    taken from its logit, as if all classes were equally frequent."""
    logits = (predictions.logits - tau * np.log(priors)).astype(np.float32)
    return predictions._replace(logits=logits, probabilities=metrics.softmax(logits))


def choose_tau(predictions: Predictions, priors: np.ndarray) -> float:
    """The strength of logit adjustment, of TAUS, with the best macro-F1 on these rows, which must be validation rows."""
    scores = []
    for tau in TAUS:
        adjusted = adjust(predictions, priors, tau)
        counts = metrics.confusion_counts(adjusted.y_true, adjusted.y_pred, len(priors))
        present = counts.sum(axis=1) > 0
        scores.append(np.mean((2 * counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1)).clip(min=1))[present]))
    return TAUS[int(np.argmax(scores))]


def merge(predictions: Predictions, source: LabelSet, target: LabelSet) -> Predictions:
    """Probabilities over `source` as those over `target`: summed by name, those of classes that it lacks left out.

    `y_true` is taken to be of `target` already. Raises ValueError where a class of `target` has no source.
    """
    lacking = without_source(source, target)
    if lacking:
        raise ValueError(f"{source.name} has nothing for {', '.join(lacking)} of {target.name}")
    summed = np.zeros((len(predictions.probabilities), len(target)))
    for column, index in enumerate(remap(source, target)):
        if index is not None:
            summed[:, index] += predictions.probabilities[:, column]
    summed /= summed.sum(axis=1, keepdims=True)
    return predictions._replace(probabilities=summed, logits=np.log(summed.clip(min=1e-12)).astype(np.float32))


def soften(predictions: Predictions, temperature: float) -> Predictions:
    """The logits divided by a temperature, above 1 for a network that is too sure; the order of classes stays."""
    logits = (predictions.logits / temperature).astype(np.float32)
    return predictions._replace(logits=logits, probabilities=metrics.softmax(logits))


def fit_temperature(predictions: Predictions) -> float:
    """The temperature with the lowest mean negative log-likelihood on these rows, which must be validation rows (Guo et al.
    2017); 1 where every row is right: the lower the better then, without end."""
    if np.array_equal(predictions.logits.argmax(axis=1), predictions.y_true):
        return 1.0

    from scipy.optimize import minimize_scalar

    rows = np.arange(len(predictions.y_true))

    def loss(log_temperature: float) -> float:
        probabilities = metrics.softmax(predictions.logits / np.exp(log_temperature))
        return float(-np.log(probabilities[rows, predictions.y_true].clip(min=1e-300)).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
