"""The settings of a training: the command line over a recipe, what they may be, and what they mean for an epoch.

`train.py` alone uses it. What a flag does is said by `python train.py --help`.

    python -c "import settings; print(settings.parse_args(['--recipe', 'E5']).sampler)"
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones import ATTENTION, STEMS
from command_line import Parser
from fer_transform import AUGMENTATIONS, BATCH_AUGMENTATIONS, SIZE_MIN_PX
from labels import LABEL_SETS
from losses import LOSSES, REG_LOSSES, SAMPLERS, WEIGHT_MODES
from models import BACKBONE_OPTIONS, HEADS, MODELS, VGGFACE2_CKPT, VGGFACE2_PREPROCESS, read_checkpoint
from recipes import FREEZE_PRETRAINED, GO_ON, RECIPES


class TrainingError(Exception):
    """A training that cannot start or go on; the message is one line and says what to do next."""


# --- the command line ---------------------------------------------------------------------------------------------------

# Adam in one pass over the weights a step: of a ResNet-34 on two cores 15 ms instead of 87. SGD's like takes what memory
# held for momentum where float16 overflows in the first step, and no weights that were frozen.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
SIZE_STEP_PX = 8  # by which --first_size grows
FORM = ("attention", "stem", "width", "depth")  # of BACKBONE_OPTIONS those that say what weights mean
SCHEDULES = ("constant", "cosine", "plateau", "step")


def checkpoint_file(text: str) -> str:
    """The checkpoint that a path names; a run folder stands for its best.pth, by which report.py finds the run again."""
    return str(Path(text) / "best.pth") if Path(text).is_dir() else text


def build_parser(description: str | None = None) -> Parser:
    """The command line; what a recipe sets has its default from RECIPES."""
    parser = Parser(description)

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
    flag(
        "first_size", type=int, help="of the training pictures at first, growing to --img_size: early epochs take less time"
    )
    flag("augment", choices=sorted(AUGMENTATIONS | BATCH_AUGMENTATIONS), help="training augmentations")
    flag("affect", action=argparse.BooleanOptionalAction, help="a head for valence and arousal")
    flag("dropout", type=float)
    flag("head", choices=sorted(HEADS), help="linear and softmax, or cosines, with ArcFace's margin in training or without")
    flag("arc_s", type=float, help="scale of the cosines of --head arcface and cosine")
    flag("arc_m", type=float, help="angular margin of --head arcface, in radians")
    flag(
        "attention", choices=sorted(ATTENTION),
        help="on the last feature maps, in fernet in every block (default: the network's own)",
    )  # fmt: skip
    flag("stem", choices=sorted(STEMS), help="first layers (default: stride2 for fernet, imagenet for ResNets)")
    flag("width", type=int, help="channels of fernet's first blocks")
    flag("depth", type=int, help="fernet's blocks at each of its four widths (default: 2)")
    flag("stochastic_depth", type=float, help="share of images for which fernet's last block is left out in training")
    flag(
        "init", metavar="CKPT", type=checkpoint_file,
        help="start from this checkpoint or ONNX file, not --weights: backbone, and head by label name",
    )  # fmt: skip
    flag("weights", choices=["auto", "vggface2", "imagenet", "none"], help="initial weights of the backbone")
    flag("vggface2_ckpt", type=checkpoint_file, default=VGGFACE2_CKPT, help="default: %(default)s")
    flag(
        "vggface2_preprocess", choices=sorted(VGGFACE2_PREPROCESS), help="input that those weights want: bgr255 for Caffe's"
    )
    flag("freeze_epochs", type=int, help="epochs of stage one, in which only the last block and the heads train")
    flag("unfreeze_all_at", type=int, help="epoch (from 1) from which the whole backbone trains")
    flag("optimizer", choices=sorted(OPTIMIZERS))
    flag("lr", type=float, help="learning rate")
    flag("backbone_lr", type=float, help="learning rate of the backbone, where it is not --lr")
    flag("weight_decay", type=float)
    flag("decay_norms", action=argparse.BooleanOptionalAction, help="weight decay on normalisation and biases, too")
    flag("schedule", choices=SCHEDULES, help="learning rate over the epochs")
    flag("step_epochs", type=int, help="epochs between the steps of --schedule step")
    flag("gamma", type=float, help="factor of each step of --schedule step and plateau")
    flag("plateau_patience", type=int, help="epochs without a lower validation loss that --schedule plateau lets pass")
    flag("warmup_epochs", type=int)
    flag("grad_clip", type=float, help="largest gradient norm (default: by recipe, else none)")
    flag("sampler", choices=sorted(SAMPLERS), help="balanced draws rows by 1/√frequency of their class")
    flag("ema", type=float, help="decay a step of a running mean of the weights, which is then scored and kept; 0 for none")
    flag("mixup", type=float, help="α of mixup's Beta distribution, 0 for none")
    flag("cutmix", type=float, help="α of cutmix's, 0 for none; with --mixup a coin decides for every batch")
    flag("sam", type=float, help="ρ of sharpness-aware minimisation, 0 for none: each step takes two")
    flag("loss", choices=sorted(LOSSES), help="cross-entropy, plain or class-weighted (wce), or one made for rare classes")
    flag("focal_gamma", type=float, help="γ of --loss focal")
    flag(
        "weight_mode",
        choices=sorted(WEIGHT_MODES),
        help="how a weighted loss (wce, focal, ldam) weights a class by its rows",
    )
    flag("beta", type=float, help="of --weight_mode effective")
    flag("class_weight", metavar="LABEL=FACTOR,…", help="multiply the weights of classes, as fear=1.5,sad=1.1")
    flag("drw_epoch", type=int, help="epoch (from 1) from which the class weights apply: deferred re-weighting")
    flag("tau", type=float, help="strength of --loss logit_adjusted")
    flag("label_smoothing", type=float)
    flag("reg_loss", choices=sorted(REG_LOSSES), help="loss of valence and arousal")
    flag("reg_weight", type=float, help="weight of the valence/arousal loss")
    flag("votes_weight", type=float, help="weight of the loss of a second head, which learns FER+ votes; 0 for none")
    flag(
        "teacher", metavar="PARQUET|votes|CKPT,…",
        help="what to learn from, too: predictions.parquet of the training rows by another network; their FER+ votes; or "
        "networks (checkpoints, run folders, ONNX files), of which each batch asks one about its augmented pictures",
    )  # fmt: skip
    flag("teacher_weight", type=float, help="share of the classification loss, and of a network's votes', that is its")
    flag("select", choices=["accuracy", "macro_f1", "val_loss"], help="validation figure that chooses the epoch")
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
    "epochs": (0, math.inf), "batch_size": (1, math.inf), "img_size": (SIZE_MIN_PX, math.inf),
    "first_size": (SIZE_MIN_PX, math.inf), "dropout": (0, 0.999), "arc_s": (1e-12, math.inf), "arc_m": (0, math.pi / 2),
    "width": (8, math.inf), "depth": (1, math.inf), "stochastic_depth": (0, 0.999),
    "freeze_epochs": (0, math.inf), "unfreeze_all_at": (1, math.inf),
    "lr": (1e-12, math.inf), "backbone_lr": (1e-12, math.inf), "weight_decay": (0, math.inf), "grad_clip": (1e-12, math.inf),
    "step_epochs": (1, math.inf), "gamma": (0, 1 - 1e-9), "plateau_patience": (0, math.inf), "warmup_epochs": (0, math.inf),
    "ema": (0, 1 - 1e-9), "mixup": (0, math.inf), "cutmix": (0, math.inf), "sam": (0, math.inf),
    "focal_gamma": (0, math.inf), "beta": (0, 1 - 1e-9), "drw_epoch": (1, math.inf), "tau": (0, math.inf),
    "label_smoothing": (0, 1), "reg_weight": (0, math.inf), "votes_weight": (0, math.inf), "teacher_weight": (0, 1),
    "patience": (0, math.inf), "workers": (0, math.inf), "seed": (0, 2**32 - 1),
}  # fmt: skip
# What makes a run what it is: resuming with another value would describe the network or its choice wrongly.
KEPT_BY_RESUME = (
    "recipe", "model", "img_size", "affect", "head", "arc_s", *BACKBONE_OPTIONS, "votes_weight", "init", "weights",
    "vggface2_preprocess", "ema", "label_set", "optimizer", "decay_norms", "select", "seed", "exp",
)  # fmt: skip

# What the validation loss is of, in part: the epochs of one run compare by it only as long as it is one loss.
OF_THE_LOSS = (
    "loss", "arc_m", "focal_gamma", "weight_mode", "beta", "class_weight", "drw_epoch", "tau", "label_smoothing",
    "reg_loss", "reg_weight",
)  # fmt: skip

# Settings that do nothing unless another one has these values: (settings, the other, its values).
NEEDS: tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...] = (
    (("arc_m",), "head", ("arcface",)),
    (("arc_s",), "head", ("arcface", "cosine")),
    (
        ("weight_mode", "beta", "class_weight", "drw_epoch"),
        "loss",
        tuple(name for name, row in LOSSES.items() if row.weighted),
    ),
    (("focal_gamma",), "loss", tuple(name for name, row in LOSSES.items() if row.focal)),
    (("tau",), "loss", tuple(name for name, row in LOSSES.items() if row.adjusted)),
    (("step_epochs",), "schedule", ("step",)),
    (("plateau_patience",), "schedule", ("plateau",)),
    (("gamma",), "schedule", ("step", "plateau")),
    (("reg_loss", "reg_weight"), "affect", (True,)),
    (("beta",), "weight_mode", ("effective",)),
    (("vggface2_preprocess", "vggface2_ckpt"), "weights", ("auto", "vggface2")),
    (("test_meta",), "score_test", (True,)),
    (("first_size",), "augment", tuple(BATCH_AUGMENTATIONS)),
)


def parse_args(argv: list[str], description: str | None = None) -> argparse.Namespace:
    """Parse twice: once to learn the recipe (or the run to resume), whose settings are then the defaults of the rest.

    Raises TrainingError or ModelError where there is no such run.
    """
    parser = build_parser(description)
    first, _ = parser.parse_known_args(argv)
    scores_only = first.epochs == 0
    if scores_only and first.resume in (None, "newest"):
        raise TrainingError("--epochs 0 trains nothing – give the checkpoint to score: --resume CKPT")
    if first.resume is not None and not scores_only:
        path = resume_path(first)
        stored = read_checkpoint(path)
        if "args" not in stored:
            raise TrainingError(f"{path} cannot be resumed: it holds the network alone – give the run's last.pth")
        if stored["args"]["recipe"] not in RECIPES:
            raise TrainingError(f"{path} is of recipe {stored['args']['recipe']}, which is gone – train anew")
        # Settings that the run's version did not have yet are the recipe's.
        kept = RECIPES[stored["args"]["recipe"]] | stored["args"]
        kept |= {"runs": str(path.parent.parent), "exp": path.parent.name}
        parser.set_defaults(**kept)
        args = parser.parse_args(argv)
        args.resume, args.runs = str(path), kept["runs"]
        for name in KEPT_BY_RESUME + OF_THE_LOSS * (kept["select"] == "val_loss"):
            if getattr(args, name) != kept[name]:
                raise TrainingError(f"--{name} is {kept[name]} in {path} and cannot change – leave it out, or start anew")
    else:
        recipe = first.recipe or first.model or "lightcnn"
        if recipe not in RECIPES:
            raise TrainingError(f"{recipe} has no recipe of its own – give --recipe {'|'.join(sorted(RECIPES))}")
        parser.set_defaults(**RECIPES[recipe] | {"recipe": recipe})
        args = parser.parse_args(argv)
        for name in BACKBONE_OPTIONS:  # a recipe's are for its own network
            if name not in MODELS[args.model].options and getattr(args, name) == RECIPES[recipe][name]:
                setattr(args, name, None)
        pretrained = any(MODELS[args.model].stages) and (args.weights != "none" or args.init is not None)
        if args.freeze_epochs is None and pretrained:
            args.freeze_epochs = FREEZE_PRETRAINED.get(args.recipe)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse settings that are out of range, or would do nothing. Raises TrainingError."""
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise TrainingError(f"--{name} must lie between {low} and {high}, not be {value}")
    recipe, parser = RECIPES[args.recipe], build_parser()
    for names, other, values in NEEDS:
        idle = [name for name in names if getattr(args, name) != recipe.get(name, parser.get_default(name))]
        if idle and getattr(args, other) not in values and args.epochs:
            advice = " or ".join(f"--{other} {value}" if value is not True else f"--{other}" for value in values)
            raise TrainingError(f"--{idle[0]} does nothing here – add {advice}")
    if args.recipe in GO_ON and args.init is None and args.epochs and not args.print_recipe:
        raise TrainingError(f"{args.recipe} goes on from a trained network – add --init runs/NAME")
    for name in ("drw_epoch", "unfreeze_all_at"):
        value = getattr(args, name)
        if value is not None and value > args.epochs > 0:
            raise TrainingError(f"--{name} {value} comes after the last of {args.epochs} epochs – give an earlier one")
    for name, value in (("select", "val_loss"), ("schedule", "plateau")):
        if args.drw_epoch is not None and getattr(args, name) == value:
            raise TrainingError(f"--{name} {value}: the validation loss is another one from --drw_epoch on – choose another")
    if args.save_path is not None and Path(args.save_path).is_dir():
        raise TrainingError(f"--save_path {args.save_path} is a folder – give a file in it: {args.save_path}/best.pth")
    if 0 < args.epochs <= args.warmup_epochs:
        raise TrainingError(f"--warmup_epochs {args.warmup_epochs} leaves none of {args.epochs} epochs – give a smaller one")
    if args.first_size is not None and args.first_size > args.img_size:
        raise TrainingError(f"--first_size {args.first_size} is more than --img_size {args.img_size} – give a smaller one")
    if args.first_size is not None and not MODELS[args.model].any_size:
        raise TrainingError(f"--first_size: {args.model} takes pictures of one size – leave it out")
    if LOSSES[args.loss].margins and args.head == "softmax":
        raise TrainingError(f"--loss {args.loss} sets margins between cosines – add --head cosine")
    if args.teacher is None and args.teacher_weight != recipe["teacher_weight"]:
        raise TrainingError("--teacher_weight does nothing here – add --teacher CKPT")
    if args.teacher is not None and args.teacher_weight == 0.0:
        raise TrainingError("--teacher does nothing with --teacher_weight 0 – give a larger one")
    for name in ("weights", "vggface2_ckpt", "vggface2_preprocess"):
        if args.init is not None and getattr(args, name) not in (recipe.get(name, parser.get_default(name)), "none"):
            raise TrainingError(f"--{name} does nothing here: weights and preprocessing are --init's – leave it out")
    if args.exp is not None and (Path(args.exp).name != args.exp or len(args.exp.split()) != 1):
        raise TrainingError(
            f"--exp {args.exp!r} must be a plain name without blanks; the folder of the run folders is --runs"
        )


def take_form(args: argparse.Namespace, model_args: dict[str, Any]) -> str:
    """Give the network the form (FORM) of that of --init, whose `model_args` these are, where no flag says otherwise;
    returns lines on what that changed. In another form its weights would say something else, though many fit."""
    spec, lines = MODELS[args.model].options, ""
    for name in [name for name in FORM if name in spec and getattr(args, name) == RECIPES[args.recipe][name]]:
        own, theirs = getattr(args, name), model_args.get(name, spec[name])
        if theirs != (spec[name] if own is None else own):
            setattr(args, name, theirs)
            lines += f"network: --{name} {theirs}, as {args.init} has it\n"
    return lines


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


# --- what they mean for an epoch ----------------------------------------------------------------------------------------


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


def size_in_epoch(epoch: int, *, epochs: int, first_size: int | None, img_size: int) -> int:
    """Side in pixels of the training pictures in an epoch, counted from 1: from first_size to img_size, SIZE_STEP_PX at a
    time, each for the same number of epochs (Tan and Le 2021, but for their growing augmentation)."""
    sizes = [*range(first_size or img_size, img_size, SIZE_STEP_PX), img_size]
    return sizes[-(-epoch * len(sizes) // epochs) - 1]


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
