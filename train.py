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
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, RandomSampler, Sampler, WeightedRandomSampler
from tqdm import tqdm

import evaluate
from evaluate import BATCH_SIZE, run_inference, score, write_text
from faces import Preprocess
from fer_transform import AUGMENTATIONS, SIZE_MIN_PX, FERDataset, default_workers, make_loader
from figures import plot_history
from labels import LABEL_SETS, LabelSet
from losses import (
    LOSSES,
    REG_LOSSES,
    SAMPLERS,
    WEIGHT_MODES,
    LossParts,
    MultitaskLoss,
    build_loss,
    class_counts,
    describe_weights,
    row_weights,
)
from metadata_parallel import MetadataError
from models import (
    ATTENTION,
    HEADS,
    MODELS,
    STEMS,
    VGGFACE2_PREPROCESS,
    ExpressionNet,
    ModelError,
    better_preprocess,
    build_model,
    choose_device,
    choose_precision,
    describe,
    load_checkpoint,
    load_pretrained,
    memory_format,
    read_checkpoint,
    save_checkpoint,
    transfer,
)
from recipes import RECIPES

# --- what a recipe names ------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, **options: torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **options),
}


class TrainingError(Exception):
    """A training that cannot start or go on; the message is one line and says what to do next."""


def plateau_factor(losses: Sequence[float], *, patience: int, gamma: float) -> float:
    """ReduceLROnPlateau: the share of --lr after epochs with these validation losses.

    Every time that more than `patience` epochs in a row have not gone 0.01% below the best, the rate is multiplied by
    `gamma`. A function of the history, so that a resumed run needs no more than that.
    """
    parameter = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=patience)
    for loss in losses:
        scheduler.step(loss)
    return optimizer.param_groups[0]["lr"]


SCHEDULES = ("constant", "cosine", "plateau", "step")


def learning_rate_factor(
    epoch: int,
    *,
    schedule: str,
    epochs: int,
    warmup_epochs: int,
    step_epochs: int = 7,
    gamma: float = 0.1,
    plateau_patience: int = 2,
    val_losses: Sequence[float] = (),
) -> float:
    """Share of --lr in an epoch, counted from 1: a linear warm-up, then the schedule over the rest.

    Without warm-up, "cosine" is CosineAnnealingLR with T_max = epochs and "step" StepLR(step_epochs, gamma). Raises
    KeyError for an unknown schedule.
    """
    if epoch <= warmup_epochs:
        return epoch / (warmup_epochs + 1)
    done = epoch - 1 - warmup_epochs
    factors: dict[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * done / max(1, epochs - warmup_epochs))),
        "plateau": lambda: plateau_factor(val_losses, patience=plateau_patience, gamma=gamma),
        "step": lambda: gamma ** (done // step_epochs),
    }
    return factors[schedule]()


def frozen_in_epoch(
    epoch: int, *, stages: tuple[tuple[str, ...], ...], freeze_epochs: int | None, unfreeze_all_at: int | None
) -> tuple[str, ...]:
    """Which children of the backbone are frozen in an epoch, counted from 1, by the report's staged fine-tuning.

    Epochs 1 to freeze_epochs are stage one, the rest stage two; from unfreeze_all_at on nothing is frozen, and with
    freeze_epochs None nothing ever is.
    """
    if freeze_epochs is None or (unfreeze_all_at is not None and epoch >= unfreeze_all_at):
        return ()
    return stages[0] if epoch <= freeze_epochs else stages[1]


# --- the loop -----------------------------------------------------------------------------------------------------------


def train_one_epoch(
    model: ExpressionNet,
    loader: DataLoader,
    criterion: MultitaskLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    device: torch.device,
    dtype: torch.dtype,
    grad_clip: float | None,
    mixup: float,
    average: AveragedModel | None,
    label: str,
) -> dict[str, float]:
    """One pass over the training rows; returns the means of the losses and the accuracy, all on augmented images.

    `average`, the running mean of the weights, follows every step.

    `mixup` > 0 blends every batch with itself in another order, in shares drawn from Beta(mixup, mixup) (Zhang et al.
    2018); the accuracy then counts the label of the larger share. Raises TrainingError when the loss is no longer a number.
    """
    model.train()
    layout = memory_format(device)
    totals = np.zeros(4)  # loss, classification loss, affect loss, hits; each times rows
    rows = 0
    bar = tqdm(loader, desc=label, unit="batch", leave=False, disable=None)
    for images, y_cls, y_reg in bar:
        images = images.to(device, non_blocking=True, memory_format=layout)
        y_cls, y_reg = y_cls.to(device, non_blocking=True), y_reg.to(device, non_blocking=True)
        share, other = mixup_share(mixup), None
        if share < 1.0:
            other = torch.randperm(len(y_cls)).to(device)
            images = (share * images + (1.0 - share) * images[other]).contiguous(memory_format=layout)
        with autocast(device, dtype):
            output = model(images)
        loss = criterion(output.logits, output.affect, y_cls, y_reg)
        if other is not None:
            second = criterion(output.logits, output.affect, y_cls[other], y_reg[other])
            loss = LossParts(*(share * a + (1.0 - share) * b for a, b in zip(loss, second, strict=True)))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss.total).backward()
        if grad_clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update_parameters(model)
        hits = (output.logits.detach().argmax(dim=1) == y_cls).sum()
        count = len(y_cls)
        parts = torch.stack([*(part.detach() * count for part in loss), hits]).cpu()
        totals += parts.double().numpy()
        rows += count
        if not math.isfinite(totals[0]):
            raise TrainingError(f"the loss is no number any more in {label} – try a smaller --lr, or --no-amp")
        bar.set_postfix(loss=f"{totals[0] / rows:.3f}", refresh=False)
    means = totals / rows
    return dict(zip(("train_loss", "train_loss_cls", "train_loss_reg", "train_accuracy"), means.tolist(), strict=True))


def mixup_share(alpha: float) -> float:
    """The larger share of a mixup, max(λ, 1 − λ) with λ from Beta(alpha, alpha); 1 without mixup."""
    if alpha == 0.0:
        return 1.0
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    return max(share, 1.0 - share)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to `dtype`, or nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def validate(
    model: ExpressionNet, loader: DataLoader, criterion: MultitaskLoss, *, device: torch.device, label: str
) -> dict[str, float]:
    """The scores of `evaluate.score` on the validation rows, and the loss (with the training's weights and smoothing)."""
    predictions = run_inference(model, loader, device=device, label=label)
    dataset: Any = loader.dataset
    scores, _ = score(predictions, dataset.labels.names)
    affect = predictions.affect_pred
    loss = criterion.cpu()(
        torch.from_numpy(predictions.logits),
        torch.from_numpy(affect) if affect is not None else None,
        torch.from_numpy(predictions.y_true),
        torch.from_numpy(predictions.affect_true),
    )
    criterion.to(device)
    return {"val_loss": loss.total.item()} | scores


class Progress:
    """Which epoch is best so far, and for how many epochs nothing has improved.

    The report stops early when neither validation accuracy nor regression RMSE (the mean of valence and arousal) improves
    for `patience` epochs; 0 never stops. `select` names the score by which the best epoch is chosen.
    """

    def __init__(self, *, select: str, patience: int) -> None:
        self.select = select
        self.patience = patience
        self.best_epoch = 0
        self.best: dict[str, float] = {select: -math.inf, "accuracy": -math.inf, "rmse": math.inf}
        self.stale_epochs = 0

    def update(self, line: dict[str, float]) -> bool:
        """Take in an epoch's line of the history; returns whether it is the best so far."""
        rmse = (line.get("valence_rmse", math.nan) + line.get("arousal_rmse", math.nan)) / 2  # NaN never improves
        improves = line["accuracy"] > self.best["accuracy"] or rmse < self.best["rmse"]
        chosen = line[self.select] > self.best[self.select]
        self.stale_epochs = 0 if improves else self.stale_epochs + 1
        self.best["accuracy"] = max(self.best["accuracy"], line["accuracy"])
        if rmse < self.best["rmse"]:
            self.best["rmse"] = rmse
        if chosen:
            self.best[self.select] = line[self.select]
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
CURVES = {"train_": "train/", "lr": "rate/lr", "time_s": "rate/time_s", "val_loss": "val/loss", "baseline_": None} | {
    f"{kind}_": f"{kind}/" for kind in ("f1", "precision", "recall", "valence", "arousal")
}


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


def record_run(folder: Path, args: argparse.Namespace, argv: list[str], *, device: torch.device, precision: str) -> None:
    """Write run.json: the exact command (and those that resumed it), every setting, versions and machine."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    contents: dict[str, Any] = {
        "command": shlex.join(["python", "train.py", *argv]),
        "args": vars(args),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "machine": {
            "processor": machine(),
            "threads": torch.get_num_threads(),
            "device": accelerator,
            "precision": precision,
        },
    }
    path = folder / "run.json"
    if args.resume is not None and path.is_file():
        first = json.loads(path.read_text(encoding="utf-8"))
        contents |= {"command": first["command"], "resumed": [*first.get("resumed", []), contents["command"]]}
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


def build_parser() -> argparse.ArgumentParser:
    """The command line; what a recipe sets has its default from RECIPES."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def flag(name: str, **options: Any) -> None:
        hyphened = [f"--{name.replace('_', '-')}"] if "_" in name else []
        parser.add_argument(f"--{name}", *hyphened, **options)

    flag("model", choices=sorted(MODELS), help="network; alone, also the recipe (default: lightcnn)")
    flag("recipe", choices=sorted(RECIPES), help="set of defaults, where it is not the model's own")
    flag("print_recipe", action="store_true", help="show the recipe with your flags in it, and stop")
    flag("train_meta", default="metadata_train.parquet", help="default: %(default)s")
    flag("val_meta", default="metadata_val.parquet", help="default: %(default)s")
    flag("test_meta", help="parquet of the test split (default: metadata_test.parquet beside --val_meta)")
    flag(
        "score_test", action=argparse.BooleanOptionalAction, help="after training, score the best checkpoint on --test_meta"
    )
    flag("data_root", help="where the pictures are, if not where the parquet says")
    flag("label_set", choices=sorted(LABEL_SETS), help="classes to train, by name (default: the parquet's)")
    flag("drop_invalid_va", action="store_true", help="leave out rows without valence and arousal, as the report does")
    flag("epochs", type=int, help="epochs in all")
    flag("batch_size", type=int)
    flag("img_size", type=int, help="height and width in pixels")
    flag("augment", choices=sorted(AUGMENTATIONS), help="training augmentations")
    flag("affect", action=argparse.BooleanOptionalAction, help="a head for valence and arousal")
    flag("dropout", type=float)
    flag("head", choices=sorted(HEADS), help="linear and softmax, or cosines, with ArcFace's margin in training or without")
    flag("arc_s", type=float, help="scale of the cosines of --head arcface and cosine")
    flag("arc_m", type=float, help="angular margin of --head arcface, in radians")
    flag("attention", choices=sorted(ATTENTION), help="on the last feature maps (default: the network's own)")
    flag("stem", choices=sorted(STEMS), help="first layers of a ResNet (default: imagenet, 7×7 stride 2 and max-pool)")
    flag("init", metavar="CKPT", help="start from this checkpoint: its backbone, and its head's rows by label name")
    flag("weights", choices=["auto", "vggface2", "imagenet", "none"], help="initial weights of the backbone")
    flag("vggface2_ckpt", default="weight/resnet50_vggface2.pth", help="default: %(default)s")
    flag(
        "vggface2_preprocess", choices=sorted(VGGFACE2_PREPROCESS), help="input that those weights want: bgr255 for Caffe's"
    )
    flag("freeze_epochs", type=int, help="epochs of stage one, in which only the last block and the heads train")
    flag("unfreeze_all_at", type=int, help="epoch (from 1) from which the whole backbone trains")
    flag("optimizer", choices=sorted(OPTIMIZERS))
    flag("lr", type=float, help="learning rate")
    flag("backbone_lr", type=float, help="learning rate of the backbone, where it is not --lr")
    flag("weight_decay", type=float)
    flag("schedule", choices=SCHEDULES, help="learning rate over the epochs")
    flag("step_epochs", type=int, help="epochs between the steps of --schedule step")
    flag("gamma", type=float, help="factor of each step of --schedule step and plateau")
    flag("plateau_patience", type=int, help="epochs without a lower validation loss that --schedule plateau lets pass")
    flag("warmup_epochs", type=int)
    flag("grad_clip", type=float, help="largest gradient norm (default: by recipe, else none)")
    flag("sampler", choices=sorted(SAMPLERS), help="balanced draws rows by 1/√frequency of their class")
    flag("ema", type=float, help="decay a step of a running mean of the weights, which is then scored and kept; 0 for none")
    flag("mixup", type=float, help="α of mixup's Beta distribution, 0 for none")
    flag("loss", choices=sorted(LOSSES), help="cross-entropy, plain or class-weighted (wce), or one made for rare classes")
    flag("focal_gamma", type=float, help="γ of --loss focal")
    flag(
        "weight_mode",
        choices=sorted(WEIGHT_MODES),
        help="how a weighted loss (wce, focal, ldam) weights a class by its rows",
    )
    flag("beta", type=float, help="of --weight_mode effective")
    flag("drw_epoch", type=int, help="epoch (from 1) from which the class weights apply: deferred re-weighting")
    flag("tau", type=float, help="strength of --loss logit_adjusted")
    flag("label_smoothing", type=float)
    flag("reg_loss", choices=sorted(REG_LOSSES), help="loss of valence and arousal")
    flag("reg_weight", type=float, help="weight of the valence/arousal loss")
    flag("select", choices=["accuracy", "macro_f1"], help="validation score that chooses the epoch")
    flag("patience", type=int, help="epochs without improvement until early stopping, 0 for never")
    flag("save_optimizer", action=argparse.BooleanOptionalAction, help="the best checkpoint carries the optimizer, too")
    flag("save_path", help="also copy the best checkpoint here")
    flag("exp", help="name of the run folder (default: the recipe and seed, with a number where that is taken)")
    flag("runs", default="runs", help="folder of the run folders (default: %(default)s)")
    flag(
        "resume", nargs="?", const="newest", metavar="CKPT",
        help="go on with a last.pth (default: the newest run's); with --epochs 0 score this checkpoint, and no more",
    )  # fmt: skip
    flag("seed", type=int, default=42, help="default: %(default)s")
    flag("workers", type=int, help="loader processes (default: by platform)")
    flag("device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    flag("amp", action=argparse.BooleanOptionalAction, help="mixed precision (default: where the device gains from it)")
    return parser


# The smallest and largest value of every number on the command line.
LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (0, math.inf), "batch_size": (1, math.inf), "img_size": (SIZE_MIN_PX, math.inf), "dropout": (0, 0.999),
    "freeze_epochs": (0, math.inf), "unfreeze_all_at": (1, math.inf), "warmup_epochs": (0, math.inf),
    "lr": (1e-12, math.inf), "weight_decay": (0, math.inf), "grad_clip": (1e-12, math.inf), "beta": (0, 1 - 1e-9),
    "arc_s": (1e-12, math.inf), "arc_m": (0, math.pi / 2), "backbone_lr": (1e-12, math.inf), "step_epochs": (1, math.inf),
    "gamma": (0, 1 - 1e-9), "plateau_patience": (0, math.inf), "mixup": (0, math.inf), "ema": (0, 1 - 1e-9),
    "focal_gamma": (0, math.inf), "drw_epoch": (1, math.inf), "tau": (0, math.inf),
    "label_smoothing": (0, 1), "reg_weight": (0, math.inf), "patience": (0, math.inf), "workers": (0, math.inf),
    "seed": (0, 2**32 - 1),
}  # fmt: skip
KEPT_BY_RESUME = ("recipe", "model", "affect", "head", "attention", "stem", "ema", "label_set", "optimizer", "exp")

# Settings that do nothing unless another one has these values: (settings, the other, its values).
NEEDS: tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...] = (
    (("arc_m",), "head", ("arcface",)),
    (("arc_s",), "head", ("arcface", "cosine")),
    (("weight_mode", "beta", "drw_epoch"), "loss", tuple(name for name, row in LOSSES.items() if row.weighted)),
    (("focal_gamma",), "loss", tuple(name for name, row in LOSSES.items() if row.focal)),
    (("tau",), "loss", tuple(name for name, row in LOSSES.items() if row.adjusted)),
    (("step_epochs",), "schedule", ("step",)),
    (("plateau_patience",), "schedule", ("plateau",)),
    (("gamma",), "schedule", ("step", "plateau")),
    (("reg_loss", "reg_weight"), "affect", (True,)),
    (("vggface2_preprocess",), "weights", ("auto", "vggface2")),
)


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse twice: once to learn the recipe (or the run to resume), whose settings are then the defaults of the rest.

    Raises TrainingError or ModelError where there is no such run.
    """
    parser = build_parser()
    first, _ = parser.parse_known_args(argv)
    scores_only = first.epochs == 0
    if scores_only and first.resume in (None, "newest"):
        raise TrainingError("--epochs 0 trains nothing – give the checkpoint to score: --resume CKPT")
    if first.resume is not None and not scores_only:
        path = resume_path(first)
        stored = read_checkpoint(path)
        if "args" not in stored:
            raise TrainingError(f"{path} cannot be resumed: it holds the network alone – give the run's last.pth")
        kept = stored["args"] | {"runs": str(path.parent.parent), "exp": path.parent.name}
        parser.set_defaults(**RECIPES[kept["recipe"]] | kept)
        args = parser.parse_args(argv)
        args.resume, args.runs = str(path), kept["runs"]
        for name in KEPT_BY_RESUME:
            if getattr(args, name) != kept[name]:
                raise TrainingError(f"--{name} is {kept[name]} in {path} and cannot change – leave it out, or start anew")
    else:
        recipe = first.recipe or first.model or "lightcnn"
        if recipe not in RECIPES:
            raise TrainingError(f"{recipe} has no recipe of its own – give --recipe {'|'.join(sorted(RECIPES))}")
        parser.set_defaults(**RECIPES[recipe] | {"recipe": recipe})
        args = parser.parse_args(argv)
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise TrainingError(f"--{name} must lie between {low} and {high}, not be {value}")
    recipe = RECIPES[args.recipe]
    for names, other, values in NEEDS:
        idle = [name for name in names if getattr(args, name) != recipe[name]]
        if idle and getattr(args, other) not in values:
            advice = " or ".join(f"--{other} {value}" if value is not True else f"--{other}" for value in values)
            raise TrainingError(f"--{idle[0]} does nothing here – add {advice}")
    if LOSSES[args.loss].margins and args.head == "softmax":
        raise TrainingError(f"--loss {args.loss} sets margins between cosines – add --head cosine")
    if args.init is not None and args.weights != "none":
        raise TrainingError(f"--init and --weights {args.weights} both say what to start from – leave one out")
    if args.exp is not None and Path(args.exp).name != args.exp:
        raise TrainingError(f"--exp {args.exp!r} must be a plain name; the folder of the run folders is --runs")
    return args


def resume_path(args: argparse.Namespace) -> Path:
    """The last.pth to go on with: the file given, that of --exp, or the newest. Raises TrainingError."""
    runs = Path(args.runs)
    if args.resume != "newest":
        path = Path(args.resume).resolve()  # its folder names the run
        return path / "last.pth" if path.is_dir() else path
    if args.exp is not None:
        return runs / args.exp / "last.pth"
    found = sorted(runs.glob("*/last.pth"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise TrainingError(f"no run in {runs}/ can be resumed – start one: make train MODEL=lightcnn")
    return found[-1]


def prepare_data(args: argparse.Namespace, preprocess: Preprocess) -> tuple[FERDataset, FERDataset]:
    """The training and validation datasets. Raises MetadataError."""
    labels = LABEL_SETS[args.label_set] if args.label_set else None
    common: dict[str, Any] = {
        "preprocess": preprocess,
        "data_root": args.data_root,
        "drop_invalid_va": args.drop_invalid_va,
    }
    train_set = FERDataset(args.train_meta, labels=labels, augment=args.augment, seed=args.seed, **common)
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
    if train_set.info["split_id"] != val_set.info["split_id"]:
        print(f"note: {args.train_meta} and {args.val_meta} come from different splits and may share pictures")
    return train_set, val_set


def choose_preprocess(args: argparse.Namespace) -> Preprocess:
    """How pictures become input of the network that `args` names. Raises TrainingError."""
    spec = MODELS[args.model]
    values: dict[str, Any] = {"mean": spec.mean, "std": spec.std}
    if args.vggface2_preprocess != "imagenet":
        if spec.channels != 3:
            raise TrainingError(f"--vggface2_preprocess: {args.model} sees grey pictures – leave it out")
        values = VGGFACE2_PREPROCESS[args.vggface2_preprocess]
    return Preprocess(size_px=args.img_size, channels=spec.channels, keep=spec.keep, **values)


def network_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `build_model` that a checkpoint keeps, in plain types."""
    chosen = {"affect": args.affect, "dropout": args.dropout, "head": args.head, "scale": args.arc_s}
    return chosen | {name: getattr(args, name) for name in ("attention", "stem") if getattr(args, name) is not None}


def prepare_network(args: argparse.Namespace, labels: LabelSet, preprocess: Preprocess) -> ExpressionNet:
    """The network with its initial weights; a resumed run gets its own later. Raises ModelError or TrainingError.

    Sets the default of --freeze_epochs, which depends on the weights.
    """
    stages = MODELS[args.model].stages
    if args.freeze_epochs is not None and not any(stages):
        raise TrainingError(f"--freeze_epochs: {args.model} has no stages to freeze – leave it out")
    torch.manual_seed(args.seed)
    model = build_model(args.model, classes=len(labels), preprocess=preprocess, **network_arguments(args))
    if args.resume is None:
        if args.init is not None:
            print(f"weights: {transfer(model, labels, load_checkpoint(args.init), origin=args.init)}")
        else:
            pretrained = load_pretrained(model, name=args.model, weights=args.weights, vggface2_ckpt=args.vggface2_ckpt)
            print(f"weights: {pretrained}")
            if pretrained.startswith(args.vggface2_ckpt) and (better := better_preprocess(model, args.vggface2_preprocess)):
                print(
                    f"warning: the first BatchNorm of {args.vggface2_ckpt} has seen other input than "
                    f"--vggface2_preprocess {args.vggface2_preprocess} gives: {better} fits it"
                )
        if args.freeze_epochs is None and args.weights != "none" and any(stages) and args.affect:
            args.freeze_epochs = 3  # the multitask report's default, for pretrained weights only
    if args.unfreeze_all_at is not None and args.freeze_epochs is None:
        raise TrainingError("--unfreeze_all_at: nothing is frozen here – give --freeze_epochs too, or leave it out")
    return model


def prepare_optimizer(args: argparse.Namespace, model: ExpressionNet) -> torch.optim.Optimizer:
    """One optimizer over all parameters: frozen ones get no gradient, and so neither step nor decay.

    With --backbone_lr the backbone is a group of its own; each group knows its `share` of --lr.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "share": 1.0}]
    if args.backbone_lr is not None:
        backbone = list(model.backbone.parameters())
        heads = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
        groups = [{"params": backbone, "share": args.backbone_lr / args.lr}, {"params": heads, "share": 1.0}]
    return OPTIMIZERS[args.optimizer](groups, lr=args.lr, weight_decay=args.weight_decay)


def prepare_average(args: argparse.Namespace, model: ExpressionNet) -> AveragedModel | None:
    """The exponential running mean of weights and BatchNorm statistics, or None without --ema (Polyak averaging)."""
    if args.ema == 0.0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema), use_buffers=True)


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
    elif args.resume is None and (runs / args.exp / "last.pth").exists():
        raise TrainingError(f"{runs / args.exp} is there already – go on with --resume, or choose another --exp")
    return runs / args.exp


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
        group["lr"] = lr * group.get("share", 1.0)
    torch.manual_seed(epoch_seed(args.seed, epoch))
    return lr


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's order of rows and dropout."""
    return seed * 1_000_003 + epoch


def train(args: argparse.Namespace, argv: list[str]) -> Path:
    """Train as `args` says; returns the run folder. Raises TrainingError, MetadataError or ModelError."""
    device = choose_device(args.device)
    dtype, reason = choose_precision(device, args.amp)
    print(f"device: {device}; precision: {reason}")
    preprocess = choose_preprocess(args)
    train_set, val_set = prepare_data(args, preprocess)

    model = prepare_network(args, train_set.labels, preprocess).to(device)
    model.to(memory_format=memory_format(device))  # type: ignore[call-overload]
    affect_rows = int((~train_set.y_reg.isnan()).any(dim=1).sum())
    if args.affect and affect_rows == 0:
        print("valence/arousal: no training row has them, so that head stays untrained and is not used")

    counts = class_counts(train_set.y_cls, len(train_set.labels))
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
    ).to(device)
    print(describe_weights(criterion.weights, train_set.labels))
    optimizer = prepare_optimizer(args, model)
    average = prepare_average(args, model)
    scored: Any = model if average is None else average.module
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    order = torch.Generator()
    workers = default_workers(device) if args.workers is None else args.workers
    train_loader = make_loader(
        train_set,
        batch_size=args.batch_size,
        workers=workers,
        device=device,
        sampler=prepare_order(args, train_set, order),
    )
    val_loader = make_loader(val_set, batch_size=BATCH_SIZE, workers=workers, device=device)

    progress = Progress(select=args.select, patience=args.patience)
    history: list[dict[str, float]] = []
    if args.resume is not None:
        history = restore(args.resume, model, average, optimizer, scaler, split_id=train_set.info["split_id"])
        for past in history:
            progress.update(past)
        if progress.exhausted:
            raise TrainingError(f"{args.resume} has stopped early – to go on all the same, add --patience 0")
        if len(history) >= args.epochs:
            raise TrainingError(f"{args.resume} has {len(history)} epochs already – to go on, give a larger --epochs")
        print(f"resumed after epoch {len(history)} from {args.resume}")
    folder = choose_folder(args)
    record_run(folder, args, argv, device=device, precision=reason)

    from torch.utils.tensorboard import SummaryWriter

    description = describe(args.model, labels=train_set.labels, preprocess=preprocess, **network_arguments(args))
    description |= {"exp": args.exp, "recipe": args.recipe, "seed": args.seed}
    description |= {"split_id": train_set.info["split_id"], "affect_rows": affect_rows}
    description |= {"class_counts": dict(zip(train_set.labels.names, counts.long().tolist(), strict=True))}
    print(f"run folder: {folder} (curves: make tensorboard)")
    with SummaryWriter(str(folder), purge_step=len(history) + 1) as board:
        for epoch in range(len(history) + 1, args.epochs + 1):
            start = time.monotonic()
            lr = start_epoch(args, epoch, model, criterion, optimizer, history)
            order.manual_seed(epoch_seed(args.seed, epoch))
            train_set.set_epoch(epoch)
            line: dict[str, float] = {"epoch": epoch, "lr": lr}
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
                average=average,
                label=f"epoch {epoch}/{args.epochs}",
            )
            line |= validate(scored, val_loader, criterion, device=device, label="validation")
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
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "history": history}
            state |= {"args": vars(args)} | ({"unaveraged": model.state_dict()} if average is not None else {})
            save_checkpoint(folder / "last.pth", contents | state)
            append_history(folder / "history.jsonl", history)
            mean_s = sum(past["time_s"] for past in history) / len(history)
            print(epoch_line(line, epochs=args.epochs, left_s=mean_s * (args.epochs - epoch)), flush=True)
            if progress.exhausted:
                print(f"stopped: neither accuracy nor RMSE has improved for {args.patience} epochs")
                break
    plot_history(history, folder / "training_history.png", chosen_epoch=progress.best_epoch)
    line = history[progress.best_epoch - 1]
    print(
        f"best epoch {progress.best_epoch} by validation {args.select}: accuracy {line['accuracy']:.4f}, "
        f"macro F1 {line['macro_f1']:.4f}; {sum(line['time_s'] for line in history) / 60:.1f} minutes in all"
    )
    return folder


def restore(
    path: str,
    model: ExpressionNet,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    split_id: str,
) -> list[dict[str, float]]:
    """Put network, running mean, optimizer and scaler back as last.pth has them; returns the history.

    Raises TrainingError.
    """
    contents = read_checkpoint(path)
    if contents["split_id"] != split_id:
        raise TrainingError(
            f"{path} was trained on split {contents['split_id']}, the parquet is of {split_id} – index as before"
        )
    try:
        model.load_state_dict(contents["state_dict"] if average is None else contents["unaveraged"])
        optimizer.load_state_dict(contents["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{path} does not fit these settings – leave out what was not given to the run") from error
    if average is not None:
        average.module.load_state_dict(contents["state_dict"])
        average.n_averaged.fill_(1)  # any number but 0, which would start the mean anew
    if contents["scaler"]:  # empty where the run was not in float16 so far
        scaler.load_state_dict(contents["scaler"])
    return contents["history"]


def score_checkpoint(args: argparse.Namespace, checkpoint: str, meta: Path, folder: Path | None) -> int:
    """Hand a checkpoint to evaluate.py, as `make eval` does; returns its status."""
    flags = ["--meta", str(meta), "--device", args.device]
    flags += ["--out", str(folder)] if folder is not None else []
    flags += ["--data_root", args.data_root] if args.data_root is not None else []
    flags += ["--workers", str(args.workers)] if args.workers is not None else []
    return evaluate.main([checkpoint, *flags])


def main(argv: list[str] | None = None) -> int:
    """Train; status 2 with one line where that cannot be done, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parse_args(argv)
        if args.print_recipe:
            del args.print_recipe
            print(json.dumps(vars(args), indent=2))
            return 0
        beside = Path(args.val_meta).with_name("metadata_test.parquet")
        test_meta = Path(args.test_meta) if args.test_meta is not None else beside
        if args.epochs == 0:
            meta = test_meta if test_meta.is_file() or args.test_meta is not None else Path(args.val_meta)
            return score_checkpoint(args, args.resume, meta, Path(args.runs) / args.exp if args.exp else None)
        folder = train(args, argv)
    except (TrainingError, MetadataError, ModelError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
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
    print(f"score it: python evaluate.py {shlex.quote(best)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
