"""Train a network by a recipe: from recipe, through the loop, to a run folder.

A recipe is a named set of defaults, one row of recipes.py for each documented system and variant; any flag overrides it,
and `--print_recipe` shows the result. `--model X` alone means recipe X.

    python train.py --model lightcnn                      # the imbalance-aware document's E0
    python train.py --recipe E5 --seed 40                 # its balanced sampler
    python train.py --model resnet50 --batch_size 32      # the multitask report
    python train.py --resume                              # go on with the newest run
    python train.py --epochs 0 --resume best.pt --exp E5  # only score a checkpoint, as that document does
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from faces import Preprocess

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, RandomSampler, Sampler, WeightedRandomSampler
from tqdm import tqdm

import evaluate
from command_line import line_of
from evaluate import score, write_text
from fer_transform import KEEP, BatchLoader, FERDataset, default_workers, drawn_pictures, epoch_seed, make_loader
from figures import plot_history
from inference import BATCH_SIZE, run_inference
from labels import LABEL_SETS, LabelSet, without_source
from losses import (
    LossParts,
    MultitaskLoss,
    build_loss,
    class_counts,
    describe_weights,
    row_weights,
)
from metadata_parallel import MetadataError, read_metadata
from models import (
    BACKBONE_OPTIONS,
    MODELS,
    VGGFACE2_PREPROCESS,
    VOTED,
    Checkpoint,
    ExpressionNet,
    ModelError,
    Output,
    autocast,
    better_preprocess,
    build_model,
    checkpoint_path,
    choose_device,
    choose_precision,
    describe,
    load_checkpoint,
    load_pretrained,
    memory_format,
    read_checkpoint,
    save_checkpoint,
    transfer,
    voted,
)
from onnx_weights import trainable
from settings import OPTIMIZERS, TrainingError, frozen_in_epoch, learning_rate_factor, parse_args, size_in_epoch, take_form
from teacher import Teacher, is_network

FETCHED_EVERY = 20  # steps, after which the loss is fetched from the device
INIT_PICTURES = 256  # on which the BatchNorm of an ONNX file is measured
HISTORY_PNG = "training_history.png"  # written last: a run that has it is complete

# --- the loop -----------------------------------------------------------------------------------------------------------


def train_one_epoch(
    model: ExpressionNet,
    loader: DataLoader | BatchLoader,
    criterion: MultitaskLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    device: torch.device,
    dtype: torch.dtype,
    grad_clip: float | None,
    mixup: float,
    cutmix: float,
    sam: float,
    teacher: Teacher | None,
    average: AveragedModel | None,
    label: str,
) -> dict[str, float]:
    """One pass over the training rows; returns the means of the losses and the accuracy, all on augmented images.

    `average`, the running mean of the weights, follows every step. With `sam` above 0 the gradient is that of the same
    batch after a step of that length uphill, which is then taken back: sharpness-aware minimisation (Foret et al. 2021).

    Batches are mixed by `mix`, and the accuracy counts the label of the larger share. Raises TrainingError when the loss is
    no longer a number.
    """
    model.train()
    layout = memory_format(device)
    totals = np.zeros(5)  # loss, classification loss, affect loss, votes loss, hits; each times rows
    rows = 0
    pending: list[Tensor] = []  # what was not yet fetched from the device, which waits for each fetch
    bar = tqdm(loader, desc=label, unit="batch", leave=False, disable=None)
    for step, (images, y_cls, y_reg, soft) in enumerate(bar, start=1):
        images = images.to(device, non_blocking=True, memory_format=layout)
        y_cls, y_reg = y_cls.to(device, non_blocking=True), y_reg.to(device, non_blocking=True)
        soft = {key: shares.to(device, non_blocking=True) for key, shares in soft.items()}
        images, share, other = mix(images, mixup=mixup, cutmix=cutmix)
        images = images.contiguous(memory_format=layout)

        taught = {} if teacher is None else teacher(images)
        losses = partial(mixed_loss, criterion, y_cls=y_cls, y_reg=y_reg, soft=soft, taught=taught, share=share, other=other)
        with autocast(device, dtype):
            output = model(images)
        loss = losses(output)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss.total).backward()
        if sam > 0.0:
            with uphill(model, sam):
                with autocast(device, dtype):
                    output_uphill = model(images)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(losses(output_uphill).total).backward()
        if grad_clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update_parameters(model)
        hits = (output.logits.detach().argmax(dim=1) == y_cls).sum()
        count = len(y_cls)
        pending.append(torch.stack([*(part.detach() * count for part in loss), hits]))
        rows += count
        if step % FETCHED_EVERY and step < len(loader):
            continue
        totals += torch.stack(pending).cpu().double().sum(dim=0).numpy()
        pending.clear()
        if not math.isfinite(totals[0]):
            raise TrainingError(f"the loss is no number any more in {label} – try a smaller --lr or --sam, or --no-amp")
        bar.set_postfix(loss=f"{totals[0] / rows:.3f}", refresh=False)
    keys = ("train_loss", "train_loss_cls", "train_loss_reg", "train_loss_votes", "train_accuracy")
    means = dict(zip(keys, (totals / rows).tolist(), strict=True))
    return means if criterion.votes_weight else {key: means[key] for key in keys if key != "train_loss_votes"}


def mix(images: Tensor, *, mixup: float, cutmix: float) -> tuple[Tensor, float, Tensor | None]:
    """Images (N, C, H, W) mixed with themselves in another order: the mixture, the larger share, which is that of the images
    themselves, and the order (N,), None where nothing was mixed.

    Shares come from Beta(α, α) with α `mixup` or `cutmix`, one of them by the toss of a coin where both are above 0: all
    pixels are blended (Zhang et al. 2018), or a rectangle is pasted in, of the image's shape and anywhere in it (Yun et al.
    2019).
    """
    paste = cutmix > 0.0 and (mixup == 0.0 or torch.rand(()).item() < 0.5)
    share = larger_share(cutmix if paste else mixup)
    if share == 1.0:
        return images, 1.0, None
    other = torch.randperm(len(images)).to(images.device)
    if not paste:
        return share * images + (1.0 - share) * images[other], share, other
    height, width = images.shape[2:]
    tall, wide = (round(math.sqrt(1.0 - share) * length) for length in (height, width))
    top, left = (int(torch.randint(room + 1, ())) for room in (height - tall, width - wide))
    inside = (..., slice(top, top + tall), slice(left, left + wide))
    mixed = images.clone()
    mixed[inside] = images[other][inside]
    return mixed, 1.0 - tall * wide / (height * width), other


def mixed_loss(
    criterion: MultitaskLoss,
    output: Output,
    *,
    y_cls: Tensor,
    y_reg: Tensor,
    soft: dict[str, Tensor],
    taught: dict[str, Tensor],
    share: float,
    other: Tensor | None,
) -> LossParts:
    """The loss of images mixed by `mix`: `share` of it by their own labels and soft ones, the rest by those in the order
    `other`; `taught` are soft labels of the mixtures themselves."""
    own = criterion(output.logits, output.affect, y_cls, y_reg, output.votes, soft | taught)
    if other is None:
        return own
    others = {key: shares[other] for key, shares in soft.items()} | taught
    second = criterion(output.logits, output.affect, y_cls[other], y_reg[other], output.votes, others)
    return LossParts(*(share * a + (1.0 - share) * b for a, b in zip(own, second, strict=True)))


def larger_share(alpha: float) -> float:
    """The larger share of two images, max(λ, 1 − λ) with λ from Beta(alpha, alpha); 1 at alpha 0."""
    if alpha == 0.0:
        return 1.0
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    return max(share, 1.0 - share)


@contextmanager
def uphill(model: nn.Module, length: float) -> Iterator[None]:
    """The weights moved by `length` along their gradients, and BatchNorm's running statistics at rest, for as long as the
    context lasts. Gradients that are no numbers, as float16's scaler tries them, move nothing."""
    moved = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter, _ in moved]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        scale = length / torch.stack([gradient.norm() for _, gradient in moved]).norm()
        for parameter, gradient in moved:
            parameter.add_(torch.nan_to_num(gradient * scale, nan=0.0, posinf=0.0, neginf=0.0))
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), weights in zip(moved, before, strict=True):
                parameter.copy_(weights)
        for norm in norms:
            norm.track_running_stats = True


def validate(
    model: ExpressionNet, loader: Any, criterion: MultitaskLoss, *, device: torch.device, label: str
) -> dict[str, float]:
    """The scores of `evaluate.score` on the validation rows, and the loss (with the training's weights and smoothing)."""
    predictions = run_inference(model, loader, device=device, label=label)
    dataset: Any = loader.dataset
    scores, _ = score(predictions, dataset.labels.names)
    if predictions.votes_pred is not None and (won := dataset.majority()) is not None:
        known = won >= 0
        scores["ferplus8_accuracy"] = float((predictions.votes_pred.argmax(axis=1) == won)[known].mean())
    affect = predictions.affect_pred
    loss = criterion.cpu()(
        torch.from_numpy(predictions.logits),
        torch.from_numpy(affect) if affect is not None else None,
        torch.from_numpy(predictions.y_true),
        torch.from_numpy(predictions.affect_true),
    )
    criterion.to(device)
    return {"val_loss": loss.total.item()} | scores


class Shrunk:
    """A loader of validation pictures, made smaller to `size_px`: BatchNorm's statistics of small training pictures tell
    nothing of large ones."""

    def __init__(self, loader: DataLoader, size_px: int) -> None:
        self.loader, self.size, self.dataset = loader, (size_px, size_px), loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for images, *labels in self.loader:
            yield functional.interpolate(images, self.size, mode="bilinear", antialias=True), *labels


class Progress:
    """Which epoch is best so far, and for how many epochs nothing has improved.

    The report stops early when neither validation accuracy nor regression RMSE (the mean of valence and arousal) improves
    for `patience` epochs; 0 never stops. `select` names the figure by which the best epoch is chosen, the largest or of
    `val_loss` the smallest. Epochs with pictures smaller than `size_px`, whose lines say so, count for neither.
    """

    def __init__(self, *, select: str, patience: int, size_px: int = 0) -> None:
        self.select = select
        self.size_px = size_px
        self.patience = patience
        self.best_epoch = 0
        self.best = {"selected": -math.inf, "accuracy": -math.inf, "rmse": math.inf}
        self.stale_epochs = 0

    def update(self, line: dict[str, float]) -> bool:
        """Take in an epoch's line of the history; returns whether it is the best so far."""
        if line.get("size_px", self.size_px) < self.size_px:
            return False
        rmse = (line.get("valence_rmse", math.nan) + line.get("arousal_rmse", math.nan)) / 2  # NaN never improves
        improves = line["accuracy"] > self.best["accuracy"] or rmse < self.best["rmse"]
        selected = -line["val_loss"] if self.select == "val_loss" else line[self.select]
        chosen = selected > self.best["selected"]
        self.stale_epochs = 0 if improves else self.stale_epochs + 1
        self.best["accuracy"] = max(self.best["accuracy"], line["accuracy"])
        if rmse < self.best["rmse"]:
            self.best["rmse"] = rmse
        if chosen:
            self.best["selected"] = selected
            self.best_epoch = int(line["epoch"])
        return chosen

    @property
    def exhausted(self) -> bool:
        """Whether early stopping is due."""
        return 0 < self.patience <= self.stale_epochs


# --- the run folder -----------------------------------------------------------------------------------------------------


def free_name(runs: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, … where a run of that name is there already."""
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(candidate for candidate in names if not (runs / candidate).exists())


def append_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write history.jsonl, one line an epoch, undefined scores as null. Rewritten whole: a resumed run may drop a line."""
    lines = [{key: value if math.isfinite(value) else None for key, value in line.items()} for line in history]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


# TensorBoard's groups of curves: the beginning of a key of the history, and the group's. What does not move has no curve.
CURVES = {
    "train_": "train/",
    "lr": "rate/lr",
    "backbone_lr": "rate/backbone_lr",
    "time_s": "rate/time_s",
    "size_px": "rate/size_px",
    "val_loss": "val/loss",
    "baseline_": None,
} | {f"{kind}_": f"{kind}/" for kind in ("f1", "precision", "recall", "valence", "arousal")}


def curve_name(key: str) -> str | None:
    """The name in TensorBoard of a key of the history, or None for what has no curve there."""
    if key == "epoch" or key.endswith(("_low", "_high", "_rows")):
        return None
    for beginning, group in CURVES.items():
        if key.startswith(beginning):
            return None if group is None else group + key.removeprefix(beginning)
    return f"val/{key}"


def machine() -> str:
    """The kind of processor in a few words, for the record of a run."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def record_run(
    folder: Path,
    args: argparse.Namespace,
    argv: list[str],
    *,
    device: torch.device,
    precision: str,
    init_exp: str | None,
    teachers: list[dict[str, Any]],
    votes_behind: bool,
) -> None:
    """Write run.json: the exact command (and those that resumed it), every setting, versions, machine (and earlier ones),
    which training --init's network came of, which networks teach (`taught_by`), and whether FER+ votes are behind it."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    here = {
        "processor": machine(),
        "threads": torch.get_num_threads(),
        "device": accelerator,
        "precision": precision,
    }
    contents: dict[str, Any] = {
        "command": shlex.join(["python", "train.py", *argv]),
        "args": vars(args),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "machine": here,
    }
    contents |= {"init_exp": init_exp} if init_exp is not None else {}
    contents |= ({"teachers": teachers} if teachers else {}) | {"voted": votes_behind}
    path = folder / "run.json"
    if args.resume is not None and path.is_file():
        first = evaluate.record_of(folder)
        contents |= {"command": first["command"], "resumed": [*first.get("resumed", []), contents["command"]]}
        earlier = [*first.get("earlier_machines", []), first["machine"]]
        contents |= {"earlier_machines": [machine for machine in earlier if machine != here]}
        contents |= {key: first[key] for key in ("init_exp", "teachers") if key in first}
        contents["voted"] = votes_behind or first.get("voted", False)
    write_text(path, json.dumps(contents, indent=2) + "\n")


def epoch_line(line: dict[str, float], *, epochs: int, left_s: float) -> str:
    """An epoch in one line of text."""
    parts = [
        f"epoch {int(line['epoch'])}/{epochs}",
        f"loss {line['train_loss']:.3f}, accuracy {line['train_accuracy']:.3f}",
        f"val loss {line['val_loss']:.3f}, accuracy {line['accuracy']:.4f}, macro F1 {line['macro_f1']:.4f}",
    ]
    if math.isfinite(line.get("valence_rmse", math.nan)):
        parts.append(f"RMSE {line['valence_rmse']:.3f}/{line['arousal_rmse']:.3f}")
        parts.append(f"CCC {line['valence_ccc']:.3f}/{line['arousal_ccc']:.3f}")
    parts.append(f"lr {line['lr']:.2e}")
    parts.append(f"{line['time_s']:.0f} s, {left_s / 60:.0f} min left")
    return " | ".join(parts)


# --- the script ---------------------------------------------------------------------------------------------------------


def prepare_data(args: argparse.Namespace, preprocess: Preprocess) -> tuple[FERDataset, FERDataset]:
    """The training and validation datasets. Raises MetadataError."""
    labels = LABEL_SETS[args.label_set] if args.label_set else None
    common: dict[str, Any] = {
        "preprocess": preprocess,
        "data_root": args.data_root,
        "drop_invalid_va": args.drop_invalid_va,
    }
    train_set = FERDataset(
        args.train_meta,
        labels=labels,
        augment=args.augment,
        seed=args.seed,
        teacher=None if is_network(args.teacher) else args.teacher,
        **common,
    )
    val_set = FERDataset(args.val_meta, labels=train_set.labels, **common)
    for name, dataset, split in (("training", train_set, "train"), ("validation", val_set, "val")):
        left_out = f" ({dataset.left_out} left out)" if dataset.left_out else ""
        print(f"{name}: {len(dataset)} rows{left_out} of {dataset.labels.name}")
        others = set(dataset.rows["split"]) - {split}
        if others:
            raise TrainingError(
                f"the {name} parquet holds rows of {', '.join(sorted(others))} – give metadata_{split}.parquet: what is "
                "trained or chosen on other splits says nothing about them"
            )
    if train_set.labels == VOTED != LABEL_SETS[train_set.info["label_set"]] and "votes" not in train_set.soft:
        raise TrainingError(
            f"--label_set ferplus8: {args.train_meta} has no FER+ votes – index FER2013 with --ferplus fer2013new.csv, or "
            "leave it out"
        )
    lacking = without_source(LABEL_SETS[train_set.info["label_set"]], train_set.labels)
    if lacking and train_set.labels != VOTED:
        raise TrainingError(
            f"--label_set {args.label_set}: {args.train_meta} has {train_set.info['label_set']} and nothing for "
            f"{', '.join(lacking)} – index other data, or leave it out"
        )
    if train_set.info["split_id"] != val_set.info["split_id"]:
        shared = len(train_set.places() & val_set.places())
        if shared:
            raise TrainingError(
                f"{shared} validation rows of {args.val_meta} are training rows of {args.train_meta} – index once, and take "
                "both from there"
            )
        print(f"note: {args.train_meta} and {args.val_meta} come from different splits and may share pictures")
    return train_set, val_set


def choose_preprocess(args: argparse.Namespace, resumed: dict[str, Any] | None, initial: Checkpoint | None) -> Preprocess:
    """How pictures become input of the network: as the resumed run's last.pth or the checkpoint of --init has it, as
    VGGFace2 weights want it, else as the registry says. Raises TrainingError.
    """
    spec = MODELS[args.model]
    keep = KEEP.get(args.augment, 1.0)
    plain = Preprocess(args.img_size, spec.channels, spec.mean, spec.std, keep=keep)
    if resumed is not None:
        return Preprocess.from_dict(resumed["preprocess"])
    if initial is not None:
        other = initial.preprocess
        if other.channels != spec.channels:
            raise TrainingError(
                f"{args.init} sees {other.channels} channels, {args.model} {spec.channels} – they do not fit"
            )
        # How faces lie in its pictures says nothing of those that it goes on with.
        return replace(other, size_px=args.img_size, keep=keep, margin=0.0, landmarks=None)
    if args.vggface2_preprocess == "imagenet":
        return plain
    if spec.channels != 3:
        raise TrainingError(f"--vggface2_preprocess: {args.model} sees grey pictures – leave it out")
    return replace(plain, **VGGFACE2_PREPROCESS[args.vggface2_preprocess])


def network_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `build_model` that a checkpoint keeps, in plain types."""
    chosen = {"affect": args.affect, "dropout": args.dropout, "head": args.head, "scale": args.arc_s}
    chosen |= {"votes": True} if args.votes_weight else {}
    return chosen | {name: getattr(args, name) for name in BACKBONE_OPTIONS if getattr(args, name) is not None}


def initial_network(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint of --init; of an ONNX file the network, put back on INIT_PICTURES of the training rows. Raises
    ModelError or MetadataError."""
    initial = load_checkpoint(args.init)
    if isinstance(initial.model, ExpressionNet):
        return initial
    rows = FERDataset(args.train_meta, preprocess=initial.preprocess, data_root=args.data_root)
    return trainable(args.init, torch.stack(drawn_pictures(rows, INIT_PICTURES)))


def prepare_network(
    args: argparse.Namespace, labels: LabelSet, preprocess: Preprocess, initial: Checkpoint | None
) -> ExpressionNet:
    """The network with its initial weights, `initial`'s with --init; a resumed run gets its own later.

    Raises ModelError or TrainingError.
    """
    stages = MODELS[args.model].stages
    if args.freeze_epochs is not None and not any(stages):
        raise TrainingError(f"--freeze_epochs: {args.model} has no stages to freeze – leave it out")
    torch.manual_seed(args.seed)
    model = build_model(args.model, classes=len(labels), preprocess=preprocess, **network_arguments(args))
    if initial is not None:
        print(f"weights: {transfer(model, labels, initial, origin=args.init)}")
    elif args.resume is None:
        pretrained = load_pretrained(model, name=args.model, weights=args.weights, vggface2_ckpt=args.vggface2_ckpt)
        print(f"weights: {pretrained}")
        if pretrained.startswith(args.vggface2_ckpt):
            better = better_preprocess(model, args.vggface2_preprocess)
            if better is not None:
                print(
                    f"warning: the first BatchNorm of {args.vggface2_ckpt} has seen other input than "
                    f"--vggface2_preprocess {args.vggface2_preprocess} gives: {better} fits it"
                )
        elif args.vggface2_preprocess != "imagenet":
            raise TrainingError(
                f"--vggface2_preprocess {args.vggface2_preprocess} is for VGGFace2 weights, and {args.vggface2_ckpt} "
                "was not loaded – give --vggface2_ckpt FILE, or leave it out"
            )
    if args.unfreeze_all_at is not None and args.freeze_epochs is None:
        raise TrainingError("--unfreeze_all_at: nothing is frozen here – give --freeze_epochs too, or leave it out")
    return model


def class_factors(text: str | None, labels: LabelSet) -> Tensor:
    """The factors of --class_weight as (classes,), 1 for classes that it does not name. Raises TrainingError."""
    factors = torch.ones(len(labels))
    for part in text.split(",") if text is not None else []:
        name, _, factor = part.partition("=")
        try:
            factors[labels.index(name)] = float(factor)
        except (KeyError, ValueError):
            factors[:] = math.nan
    if not (factors.isfinite() & (factors > 0.0)).all():
        raise TrainingError(f"--class_weight {text}: give LABEL=FACTOR, above 0, of {', '.join(labels.names)}: fear=1.5")
    return factors


def prepare_loss(args: argparse.Namespace, counts: Tensor, labels: LabelSet) -> MultitaskLoss:
    """The loss that the settings name, for a training split with these rows per class (classes,). Raises TrainingError."""
    criterion = build_loss(
        args.loss,
        counts=counts,
        weight_mode=args.weight_mode,
        beta=args.beta,
        tau=args.tau,
        focal_gamma=args.focal_gamma,
        scale=args.arc_s,
        arcface_margin=args.arc_m if args.head == "arcface" else None,
        label_smoothing=args.label_smoothing,
        reg_loss=args.reg_loss,
        reg_weight=args.reg_weight,
        votes_weight=args.votes_weight,
        teacher_weight=args.teacher_weight if args.teacher is not None else 0.0,
    )
    if criterion.weights is not None:
        criterion.weights *= class_factors(args.class_weight, labels)
    return criterion


def prepare_optimizer(args: argparse.Namespace, model: ExpressionNet) -> torch.optim.Optimizer:
    """One optimizer over all parameters: frozen ones get no gradient, and so neither step nor decay.

    With --backbone_lr the backbone is a group of its own; each group knows its `share` of --lr. With --no-decay_norms
    normalisation and biases, which are vectors, are a group without weight decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "share": 1.0}]
    if args.backbone_lr is not None:
        backbone = list(model.backbone.parameters())
        heads = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
        groups = [{"params": backbone, "share": args.backbone_lr / args.lr}, {"params": heads, "share": 1.0}]
    if not args.decay_norms:
        groups = [
            group
            | {"params": [p for p in group["params"] if (p.ndim < 2) == vectors]}
            | ({"weight_decay": 0.0} if vectors else {})
            for group in groups
            for vectors in (False, True)
        ]
    return OPTIMIZERS[args.optimizer](groups, lr=args.lr, weight_decay=args.weight_decay)


def prepare_average(args: argparse.Namespace, model: ExpressionNet) -> AveragedModel | None:
    """The exponential running mean of weights and BatchNorm statistics, or None without --ema (Polyak averaging).

    After n steps the decay is at most (1 + n) / (10 + n), so that the first, random weights are soon forgotten.
    """
    if args.ema == 0.0:
        return None

    def update(mean: Any, current: Any, steps: Tensor | int) -> None:
        done = int(average.n_averaged)  # on the CPU: `steps` is a copy of it on the device, which would wait for it
        get_ema_multi_avg_fn(min(args.ema, (1 + done) / (10 + done)))(mean, current, steps)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


def prepare_order(args: argparse.Namespace, dataset: FERDataset, generator: torch.Generator) -> Sampler[int]:
    """The order of the training rows by --sampler: each once, or drawn with replacement, as many as there are."""
    weights = row_weights(dataset.y_cls, len(dataset.labels), args.sampler)
    if weights is None:
        return RandomSampler(dataset, generator=generator)
    return WeightedRandomSampler(weights.tolist(), len(dataset), generator=generator)


def choose_folder(args: argparse.Namespace) -> Path:
    """The run folder; without --exp a name that is not taken. Raises TrainingError for one that is."""
    runs = Path(args.runs)
    if args.exp is None:
        args.exp = free_name(runs, f"{args.recipe}_seed{args.seed}")
    folder = runs / args.exp
    if args.resume is None and (folder / "last.pth").exists():
        raise TrainingError(f"{folder} is there already – go on with --resume, or choose another --exp")
    if args.resume is None and any((folder / name).exists() for name in ("best.pth", "metrics.json")):
        raise TrainingError(f"{folder} holds another network or its figures – choose another --exp")
    return folder


def taught_by(args: argparse.Namespace, teacher: Teacher | None) -> tuple[list[dict[str, Any]], bool]:
    """Which networks teach, or which table of answers: path, name of the training and SHA-256 of each, as others may lie
    under their paths later; and whether FER+ votes are behind them."""
    if teacher is not None:
        return teacher.record, teacher.voted
    if args.teacher in (None, "votes"):
        return [], args.teacher == "votes"
    table = Path(args.teacher)
    answered = evaluate.record_of(table.parent)  # of the network whose answers they are
    exp = answered.get("args", {}).get("exp")
    return [{"path": args.teacher, "exp": exp, "sha256": evaluate.digests([table])}], evaluate.learnt_votes(answered)


def check_teachers(folder: Path, args: argparse.Namespace, teachers: list[dict[str, Any]]) -> None:
    """Refuse to go on with other teachers than the run in `folder` was begun with. Raises TrainingError."""
    begun = evaluate.record_of(folder)
    alike = begun.get("args", {}).get("teacher") == args.teacher
    # Older records name a table by --teacher alone.
    before = begun.get("teachers", teachers if alike else [])
    if begun and [one["sha256"] for one in before] != [one["sha256"] for one in teachers]:
        others = ", ".join(one["path"] for one in before) or "none"
        raise TrainingError(
            f"{folder} was begun with other teachers ({others}) – put them back, or begin another training: --init {folder}"
        )


def start_epoch(
    args: argparse.Namespace,
    epoch: int,
    model: ExpressionNet,
    criterion: MultitaskLoss,
    optimizer: torch.optim.Optimizer,
    history: Sequence[dict[str, float]],
) -> float:
    """Freeze and unfreeze, set class weights on or off, the learning rate, which is returned, and the random numbers.

    All are functions of the settings, the epoch and the history, so that a resumed run equals an uninterrupted one.
    """
    frozen = frozen_in_epoch(
        epoch,
        stages=MODELS[args.model].stages,
        freeze_epochs=args.freeze_epochs,
        unfreeze_all_at=args.unfreeze_all_at,
    )
    if frozen != model.frozen:
        model.freeze(frozen)
        print(f"epoch {epoch}: {'frozen: ' + ', '.join(frozen) if frozen else 'the whole network trains'}")
    criterion.weighting = args.drw_epoch is None or epoch >= args.drw_epoch
    lr = args.lr * learning_rate_factor(
        epoch,
        schedule=args.schedule,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        step_epochs=args.step_epochs,
        gamma=args.gamma,
        plateau_patience=args.plateau_patience,
        val_losses=[line["val_loss"] for line in history],
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
    torch.manual_seed(epoch_seed(args.seed, epoch))
    return lr


def train(args: argparse.Namespace, argv: list[str]) -> Path:
    """Train as `args` says; returns the run folder. Raises TrainingError, MetadataError or ModelError."""
    device = choose_device(args.device)
    dtype, reason = choose_precision(device, args.amp)
    print(f"device: {device}; precision: {reason}")
    resumed = None if args.resume is None else read_checkpoint(args.resume)
    initial = initial_network(args) if args.init is not None and resumed is None else None
    if initial is not None and initial.info.get("model") == args.model:
        print(take_form(args, initial.info.get("model_args", {})), end="")
    preprocess = choose_preprocess(args, resumed, initial)
    train_set, val_set = prepare_data(args, preprocess)
    if initial is not None and initial.info.get("split_id") not in (None, train_set.info["split_id"]):
        print(f"note: {args.init} was trained on another split, which may hold validation rows of this one")

    model = prepare_network(args, train_set.labels, preprocess, initial).to(device)
    model.to(memory_format=memory_format(device))  # type: ignore[call-overload]
    affect_rows = int((~train_set.y_reg.isnan()).any(dim=1).sum())
    if args.affect and affect_rows == 0:
        print("valence/arousal: no training row has them, so that head stays untrained and is not used")

    if args.votes_weight and train_set.labels == VOTED:
        raise TrainingError("--votes_weight: the second head would learn the same classes – leave it out, or train fer7")
    if args.votes_weight and "votes" not in train_set.soft:
        raise TrainingError(f"--votes_weight: {args.train_meta} has no FER+ votes – index with --ferplus fer2013new.csv")

    counts = class_counts(train_set.y_cls, len(train_set.labels))
    criterion = prepare_loss(args, counts, train_set.labels).to(device)
    print(describe_weights(criterion.weights, train_set.labels))
    teacher = None
    if is_network(args.teacher):
        teacher = Teacher(
            args.teacher,
            labels=train_set.labels,
            preprocess=preprocess,
            split_id=train_set.info["split_id"],
            device=device,
            dtype=dtype,
        )
    optimizer = prepare_optimizer(args, model)
    average = prepare_average(args, model)
    scored: Any = model if average is None else average.module
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    order = torch.Generator()
    workers = default_workers(device) if args.workers is None else args.workers
    common: dict[str, Any] = {"batch_size": args.batch_size, "device": device}
    common["sampler"] = prepare_order(args, train_set, order)
    in_memory = train_set.batch_augmentation is not None
    train_loader: Any = BatchLoader(train_set, **common) if in_memory else make_loader(train_set, workers=workers, **common)
    val_loader = make_loader(val_set, batch_size=BATCH_SIZE, workers=workers, device=device)

    progress, last_epoch = Progress(select=args.select, patience=args.patience, size_px=args.img_size), args.epochs
    history: list[dict[str, float]] = []
    if resumed is not None:
        history = restore(args.resume, resumed, model, average, optimizer, scaler, split_id=train_set.info["split_id"])
        for past in history:
            progress.update(past)
        if progress.exhausted or len(history) >= args.epochs:
            last_epoch = len(history)  # nothing is left to train, but perhaps something to draw
            if progress.best_epoch == 0:
                raise TrainingError(f"{args.resume} has seen no pictures of {args.img_size} px yet – give a larger --epochs")
            if (Path(args.runs) / args.exp / HISTORY_PNG).is_file():
                early = "has stopped early – to go on all the same, add --patience 0"
                over = f"has {len(history)} epochs already – to go on, give a larger --epochs"
                raise TrainingError(f"{args.resume} {early if progress.exhausted else over}")
        print(f"resumed after epoch {len(history)} from {args.resume}")
    folder = choose_folder(args)
    teachers, taught_votes = taught_by(args, teacher)
    if resumed is not None:
        check_teachers(folder, args, teachers)
        if progress.best_epoch and not (folder / "best.pth").is_file():
            raise TrainingError(
                f"{folder / 'best.pth'}, of epoch {progress.best_epoch}, is not there – put it beside last.pth: perhaps no "
                "later epoch is better"
            )
    votes_behind = resumed.get("voted", False) if resumed is not None else initial is not None and voted(initial)
    votes_behind |= args.votes_weight > 0.0 or taught_votes or train_set.labels == VOTED
    record_run(
        folder,
        args,
        argv,
        device=device,
        precision=reason,
        init_exp=None if initial is None else initial.info.get("exp"),
        teachers=teachers,
        votes_behind=votes_behind,
    )
    if history:
        append_history(folder / "history.jsonl", history)  # a line short where it was killed after last.pth was written

    from torch.utils.tensorboard import SummaryWriter

    description = describe(args.model, labels=train_set.labels, preprocess=preprocess, **network_arguments(args))
    description |= {"exp": args.exp, "recipe": args.recipe, "seed": args.seed}
    description |= {"split_id": train_set.info["split_id"], "affect_rows": affect_rows, "voted": votes_behind}
    description |= {"class_counts": dict(zip(train_set.labels.names, counts.long().tolist(), strict=True))}
    print(f"run folder: {folder} (curves: make tensorboard)")
    with SummaryWriter(str(folder), purge_step=len(history) + 1) as board:
        for epoch in range(len(history) + 1, last_epoch + 1):
            start = time.monotonic()
            lr = start_epoch(args, epoch, model, criterion, optimizer, history)
            order.manual_seed(epoch_seed(args.seed, epoch))
            train_set.set_epoch(epoch)
            line: dict[str, float] = {"epoch": epoch, "lr": lr}
            line |= {"backbone_lr": lr * args.backbone_lr / args.lr} if args.backbone_lr is not None else {}
            shown: Any = val_loader
            if args.first_size is not None:
                size_px = size_in_epoch(epoch, epochs=args.epochs, first_size=args.first_size, img_size=args.img_size)
                line["size_px"] = train_loader.size_px = size_px
                shown = Shrunk(val_loader, size_px) if size_px < args.img_size else val_loader
            line |= train_one_epoch(
                model,
                train_loader,
                criterion,
                optimizer,
                scaler,
                device=device,
                dtype=dtype,
                grad_clip=args.grad_clip,
                mixup=args.mixup,
                cutmix=args.cutmix,
                sam=args.sam,
                teacher=teacher,
                average=average,
                label=f"epoch {epoch}/{args.epochs}",
            )
            line |= validate(scored, shown, criterion, device=device, label="validation")
            line["time_s"] = round(time.monotonic() - start, 2)
            history.append(line)
            best = progress.update(line)
            for key, value in line.items():
                if math.isfinite(value) and (name := curve_name(key)) is not None:
                    board.add_scalar(name, value, epoch)
            contents = description | {"epoch": epoch, "state_dict": scored.state_dict(), "metrics": line}
            if best:
                for stale in folder.glob("metrics*.json"):
                    stale.unlink()  # figures of an earlier best.pth, in a resumed run
                chosen = contents | ({"optimizer": optimizer.state_dict()} if args.save_optimizer else {})
                save_checkpoint(folder / "best.pth", chosen)
                if args.save_path:
                    save_checkpoint(args.save_path, chosen)
            state: dict[str, Any] = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "history": history}
            state |= {"args": vars(args)}
            if average is not None:
                state |= {"unaveraged": model.state_dict(), "averaged_steps": int(average.n_averaged)}
            save_checkpoint(folder / "last.pth", contents | state)
            append_history(folder / "history.jsonl", history)
            mean_s = statistics.fmean(past["time_s"] for past in history[-5:])  # what ran beside earlier ones may be over
            print(epoch_line(line, epochs=args.epochs, left_s=mean_s * (args.epochs - epoch)), flush=True)
            if progress.exhausted:
                print(f"stopped: neither accuracy nor RMSE has improved for {args.patience} epochs")
                break
    plot_history(
        history, folder / HISTORY_PNG, chosen_epoch=progress.best_epoch, title=f"{folder.name}, {train_set.labels.name}"
    )
    line = history[progress.best_epoch - 1]
    print(
        f"best epoch {progress.best_epoch} by validation {args.select.removeprefix('val_')}: "
        f"accuracy {line['accuracy']:.4f}, macro F1 {line['macro_f1']:.4f}; "
        f"{sum(line['time_s'] for line in history) / 60:.1f} minutes in all"
    )
    return folder


def restore(
    path: str,
    contents: dict[str, Any],
    model: ExpressionNet,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    split_id: str,
) -> list[dict[str, float]]:
    """Put network, running mean, optimizer and scaler back as `contents`, last.pth at `path`, has them; returns the history.

    Raises TrainingError.
    """
    if contents["split_id"] != split_id:
        raise TrainingError(
            f"{path} was trained on split {contents['split_id']}, the parquet is of {split_id} – index as before"
        )
    asked = [{key: group[key] for key in ("share", "weight_decay", "fused")} for group in optimizer.param_groups]
    try:
        model.load_state_dict(contents["state_dict"] if average is None else contents["unaveraged"])
        optimizer.load_state_dict(contents["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{path} does not fit these settings – leave out what was not given to the run") from error
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)  # what may be changed on resuming
    if average is not None:
        average.module.load_state_dict(contents["state_dict"])
        average.n_averaged.fill_(contents["averaged_steps"])
    if contents["scaler"]:  # empty where the run was not in float16 so far
        scaler.load_state_dict(contents["scaler"])
    return contents["history"]


def scoring_folder(args: argparse.Namespace) -> Path | None:
    """The folder that --epochs 0 writes into; None leaves it to evaluate.py. Raises TrainingError for another run's."""
    if args.exp is None:
        return None
    folder = Path(args.runs) / args.exp
    if (folder / "last.pth").is_file() and checkpoint_path(args.resume).resolve().parent != folder.resolve():
        raise TrainingError(f"{folder} is another training's – choose another --exp for the figures of {args.resume}")
    return folder


def check_test(train_meta: str, test_meta: Path) -> None:
    """Refuse a test parquet before the training that it could not be used after. Raises TrainingError, EvaluationError or
    MetadataError."""
    evaluate.split_of(test_meta, "test")
    if read_metadata(train_meta)[1]["split_id"] != read_metadata(test_meta)[1]["split_id"]:
        raise TrainingError(
            f"{test_meta} is of another split than {train_meta} and may hold its training rows – index once, or leave it "
            "with --no-score_test"
        )


def score_checkpoint(args: argparse.Namespace, checkpoint: str, meta: Path, folder: Path | None) -> int:
    """Hand a checkpoint to evaluate.py, as `make eval` does; returns its status."""
    flags = ["--meta", str(meta), "--device", args.device]
    flags += ["--out", str(folder)] if folder is not None else []
    flags += ["--data_root", args.data_root] if args.data_root is not None else []
    flags += ["--workers", str(args.workers)] if args.workers is not None else []
    flags += ["--label_set", args.label_set] if args.label_set is not None else []
    return evaluate.main([checkpoint, *flags])


def main(argv: list[str] | None = None) -> int:
    """Train; status 2 with one line where that cannot be done, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace(runs="runs", exp=None)
    try:
        args = parse_args(argv, __doc__)
        if args.print_recipe:
            del args.print_recipe
            print(json.dumps(vars(args), indent=2))
            return 0
        beside = Path(args.val_meta).with_name("metadata_test.parquet")
        test_meta = Path(args.test_meta) if args.test_meta is not None else beside
        if args.epochs == 0:
            declined = not {"--no-score_test", "--no-score-test"}.isdisjoint(argv)  # the recipe's own choice is no refusal
            is_there = test_meta.is_file() or args.test_meta is not None
            meta = test_meta if is_there and not declined else Path(args.val_meta)
            return score_checkpoint(args, args.resume, meta, scoring_folder(args))
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrainingError("torchrun would train copies of one network – on several GPUs: --device cuda:1 --seed 43, …")
        if args.score_test and (test_meta.is_file() or args.test_meta is not None):
            check_test(args.train_meta, test_meta)
        folder = train(args, argv)
    except (TrainingError, MetadataError, ModelError, evaluate.EvaluationError, OSError) as error:
        print(f"train.py: {line_of(error)}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("train.py: out of memory – give a smaller --batch_size or --img_size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        last = Path(args.runs) / str(args.exp) / "last.pth"
        advice = (
            f"go on with: python train.py --resume {shlex.quote(str(last))}"
            if last.is_file()
            else "no epoch was finished: start again"
        )
        print(f"\ntrain.py: interrupted – {advice}", file=sys.stderr)
        return 130
    best = str(folder / "best.pth")
    if args.score_test and test_meta.is_file():
        return score_checkpoint(args, best, test_meta, None)
    if args.score_test:
        print(f"{test_meta} is not there, so there is no test split to score")
    split = " --split val" if args.score_test is False else ""  # whoever compares recipes leaves the test split alone
    print(f"score it: python evaluate.py {shlex.quote(best)}{split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
