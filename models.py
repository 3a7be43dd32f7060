"""The networks, their heads, their checkpoints, and the choice of device and precision.

Every network is an `ExpressionNet`: a backbone that ends in a feature vector, a classification head, and where asked a
regression head for valence and arousal. `MODELS` is the registry. A checkpoint holds all that is needed to use it:
`save_checkpoint` is the only writer and `load_checkpoint` the only reader.

    python models.py                                            # the device check: what would be used here, and why
    python models.py --half runs/a/best.pth weights/a.pth       # a checkpoint in half precision, for shipping
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from faces import Preprocess
from labels import LabelSet, label_set_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHECKPOINT_FORMAT = 1
TRAINING_STATE = ("optimizer", "scaler", "history", "args")  # what only a last.pth holds
MIN_LOADED_FRACTION = 0.9  # of the backbone's tensors; fewer means that the file is of another network


class ModelError(Exception):
    """A checkpoint or weights file that cannot be used; the message is one line and says what to do next."""


class Output(NamedTuple):
    """What a network returns: logits (N, classes), and affect (N, 2) [valence, arousal] or None without that head."""

    logits: Tensor
    affect: Tensor | None


class ExpressionNet(nn.Module):
    """A backbone (N, C, H, W) → (N, features), dropout on the features, and the heads on top of it."""

    def __init__(self, backbone: nn.Module, *, features: int, classes: int, affect: bool, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, classes)
        self.regressor = nn.Linear(features, 2) if affect else None
        self.frozen: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Output:
        features = self.dropout(self.backbone(images))  # (N, features)
        return Output(self.classifier(features), self.regressor(features) if self.regressor is not None else None)

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze exactly these children of the backbone (`layer1`, …) and let everything else train.

        Raises KeyError for a name that the backbone does not have.
        """
        children = dict(self.backbone.named_children())
        self.requires_grad_(True)
        self.frozen = tuple(names)
        for name in self.frozen:
            children[name].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ExpressionNet":
        """As usual, but frozen parts stay in eval mode: their BatchNorm statistics must not move either."""
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self


class LightCNN(nn.Sequential):
    """The backbone of the imbalance-aware document: three blocks of (3×3 convolution, BatchNorm, ReLU) × 2 and a 2×2
    max-pool, at widths 32, 64 and 128; flattened (4,608 at 48 px) → 256, ReLU, dropout → 128 features."""

    def __init__(self, *, channels: int, size_px: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        width_in = channels
        for width in (32, 64, 128):
            for _ in range(2):
                layers += [
                    nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                width_in = width
            layers.append(nn.MaxPool2d(2))
        flat = width_in * (size_px // 8) ** 2
        layers += [nn.Flatten(), nn.Linear(flat, 256), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(256, 128)]
        super().__init__(*layers)


def light_cnn(*, classes: int, affect: bool, dropout: float, preprocess: Preprocess) -> ExpressionNet:
    """The light CNN; its dropout stands before the 128 features, and none after."""
    backbone = LightCNN(channels=preprocess.channels, size_px=preprocess.size_px, dropout=dropout)
    return ExpressionNet(backbone, features=128, classes=classes, affect=affect, dropout=0.0)


def resnet(depth: int) -> Callable[..., ExpressionNet]:
    """A builder of the report's multitask network on torchvision's ResNet of this depth, its `fc` replaced by Identity."""

    def build(*, classes: int, affect: bool, dropout: float, preprocess: Preprocess) -> ExpressionNet:
        from torchvision.models import get_model

        backbone: Any = get_model(f"resnet{depth}", weights=None)
        features = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if preprocess.channels != 3:
            backbone.conv1 = nn.Conv2d(preprocess.channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        return ExpressionNet(backbone, features=features, classes=classes, affect=affect, dropout=dropout)

    return build


@dataclass(frozen=True)
class ModelSpec:
    """A row of the registry: how a network is built, and the input it is meant for unless a recipe says otherwise."""

    build: Callable[..., ExpressionNet]
    size_px: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float
    keep: float  # of `Preprocess`
    imagenet: str | None  # torchvision's name of the weights, None where there are none
    # What the documents' staged freezing holds still: in stage one all but the last block, then all but the last two.
    stages: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


RESNET_STAGES = (("conv1", "bn1", "layer1", "layer2", "layer3"), ("conv1", "bn1", "layer1", "layer2"))


def resnet_spec(depth: int) -> ModelSpec:
    """The registry's row for a ResNet of the report."""
    weights = f"ResNet{depth}_Weights.IMAGENET1K_V1"
    return ModelSpec(resnet(depth), 224, 3, IMAGENET_MEAN, IMAGENET_STD, 0.7, 1.0, weights, RESNET_STAGES)


MODELS = {
    # 44 of 48 px, as its training crops: whole pictures cost it three points of accuracy on FER2013's PublicTest.
    "lightcnn": ModelSpec(light_cnn, 48, 1, (0.5,), (0.5,), 0.3, 44 / 48, None),
    "resnet18": resnet_spec(18),
    "resnet34": resnet_spec(34),
    "resnet50": resnet_spec(50),
}


def build_model(
    name: str, *, classes: int, affect: bool, preprocess: Preprocess, dropout: float | None = None
) -> ExpressionNet:
    """The network `name` of the registry with fresh weights; `dropout` defaults to the registry's. Raises KeyError."""
    spec = MODELS[name]
    dropout = spec.dropout if dropout is None else dropout
    return spec.build(classes=classes, affect=affect, dropout=dropout, preprocess=preprocess)


# --- weights from elsewhere ---------------------------------------------------------------------------------------------


def load_backbone(model: ExpressionNet, state: dict[str, Tensor], *, origin: str) -> str:
    """Copy what fits of a state dict into the backbone, skipping `fc.*`; returns one line on what was loaded.

    Key layouts in circulation are understood: bare, behind `module.` or `backbone.`, or inside {"state_dict": …}.
    Raises ModelError where less than 90% of the backbone's tensors are found with their shapes.
    """
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]  # type: ignore[assignment]
    own = model.backbone.state_dict()
    found = {}
    for key, value in state.items():
        for prefix in ("module.", "backbone."):
            key = key.removeprefix(prefix)
        if key in own and isinstance(value, Tensor) and own[key].shape == value.shape:
            found[key] = value
    # num_batches_tracked is bookkeeping that many files lack.
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in found]
    if len(missing) > (1.0 - MIN_LOADED_FRACTION) * len(needed):
        raise ModelError(
            f"{origin}: only {len(needed) - len(missing)} of {len(needed)} tensors fit this network – "
            "give another file, or --weights none"
        )
    model.backbone.load_state_dict(found, strict=False)
    rest = f"; not found: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}" if missing else ""
    return f"{origin}: {len(needed) - len(missing)} of {len(needed)} backbone tensors loaded{rest}"


def load_pretrained(model: ExpressionNet, *, name: str, weights: str, vggface2_ckpt: str) -> str:
    """Initialise the backbone from `weights` ("auto", "vggface2", "imagenet", "none"); returns one line on what was done.

    "auto" takes the VGGFace2 file where it exists, else ImageNet weights, which torchvision keeps in its cache or fetches
    from download.pytorch.org and checks by hash. Raises ModelError where the weights cannot be had.
    """
    if weights == "auto":
        weights = "vggface2" if Path(vggface2_ckpt).is_file() else "imagenet"
    if weights == "none":
        return "random initialisation"
    if weights == "vggface2":
        if not Path(vggface2_ckpt).is_file():
            raise ModelError(f"{vggface2_ckpt} not found – give --vggface2_ckpt FILE, or --weights imagenet or none")
        return load_backbone(model, read_torch(vggface2_ckpt), origin=vggface2_ckpt)
    imagenet = MODELS[name].imagenet
    if imagenet is None:
        raise ModelError(f"there are no ImageNet weights for {name} – use --weights none")
    from torchvision.models import get_weight

    try:
        state = get_weight(imagenet).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"ImageNet weights for {name} cannot be downloaded ({type(error).__name__}) – go online once, "
            f"put VGGFace2 weights at {vggface2_ckpt}, or start from nothing with --weights none"
        ) from error
    return load_backbone(model, state, origin=imagenet)


# --- checkpoints --------------------------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """A network as it came from a file, in eval mode on the CPU, with what it needs to be used."""

    model: ExpressionNet
    labels: LabelSet
    preprocess: Preprocess
    info: dict[str, Any]  # everything else in the file: model, epoch, metrics, split_id, versions, exp …


def describe(
    name: str, *, labels: LabelSet, preprocess: Preprocess, affect: bool, dropout: float | None = None
) -> dict[str, Any]:
    """The part of a checkpoint from which `load_checkpoint` rebuilds the network, in plain types."""
    return {
        "format": CHECKPOINT_FORMAT,
        "model": name,
        "model_args": {"affect": affect, "dropout": dropout},
        "label_set": labels.name,
        "labels": list(labels.names),
        "preprocess": preprocess.to_dict(),
        "versions": versions(),
    }


def save_checkpoint(path: str | os.PathLike[str], contents: dict[str, Any], *, half: bool = False) -> None:
    """Write a checkpoint (the dict of `describe` with at least `state_dict` added) to a temporary name, then rename it.

    `half` stores floating-point weights in half precision, for shipping.
    """
    if half:
        state = contents["state_dict"]
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        contents = contents | {"state_dict": state}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        torch.save(contents, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict in a torch file, on the CPU, with weights_only=True. Raises ModelError where that is not what it is."""
    path = Path(path) / "best.pth" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ModelError(f"{path} not found – is the path right? A network is made by: make train MODEL=lightcnn")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        raise ModelError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}) – give a best.pth"
        ) from error
    if not isinstance(contents, dict):
        raise ModelError(f"{path} holds a {type(contents).__name__}, not a checkpoint – expected a dict of tensors")
    return contents


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of one of our checkpoints. Raises ModelError for other files."""
    contents = read_torch(path)
    missing = {"format", "model", "model_args", "labels", "preprocess", "state_dict"} - contents.keys()
    if missing:
        raise ModelError(f"{path} is not a checkpoint of this project (it lacks {', '.join(sorted(missing))})")
    if contents["format"] != CHECKPOINT_FORMAT:
        raise ModelError(f"{path} has checkpoint format {contents['format']}, this program reads {CHECKPOINT_FORMAT}")
    if contents["model"] not in MODELS:
        raise ModelError(f"{path} holds the network {contents['model']!r}, which is none of {', '.join(MODELS)}")
    return contents


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Rebuild the network of a checkpoint: float32, eval mode, on the CPU. Raises ModelError."""
    contents = read_checkpoint(path)
    preprocess = Preprocess.from_dict(contents["preprocess"])
    model = build_model(contents["model"], classes=len(contents["labels"]), preprocess=preprocess, **contents["model_args"])
    try:
        model.load_state_dict(contents.pop("state_dict"))  # half-precision files are widened by the copy
    except RuntimeError as error:
        raise ModelError(f"{path}: its weights do not fit the network {contents['model']}") from error
    return Checkpoint(model.eval(), label_set_of(contents["labels"]), preprocess, contents)


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


# --- device and precision -----------------------------------------------------------------------------------------------


def choose_device(name: str = "auto") -> torch.device:
    """The device to use: CUDA, then Apple's MPS, then the CPU. Raises ModelError where the one asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind, colon, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available.get(kind, False) or (colon and not (index.isdecimal() and int(index) < count)):
        raise ModelError(f"device {name} is not available here – use --device auto")
    return torch.device(name)


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of images and weights that convolutions are fastest in: channels last, but for MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def choose_precision(device: torch.device, amp: bool | None = None) -> tuple[torch.dtype, str]:
    """The dtype that autocast uses, and why, in words. `amp` None decides by the device; False means float32.

    bfloat16 needs no loss scaling; float16 (older CUDA cards) does. On CPUs bfloat16 gains only where the processor
    multiplies it itself.
    """
    if amp is False:
        return torch.float32, "float32, as asked (--no-amp)"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16, which this GPU multiplies itself"
        return torch.float16, "float16 with loss scaling, as this GPU has no bfloat16"
    if device.type == "cpu":
        if cpu_multiplies_bfloat16():
            return torch.bfloat16, "bfloat16, which this CPU multiplies itself"
        if amp:
            return torch.bfloat16, "bfloat16, as asked (--amp), though this CPU gains nothing from it"
        return torch.float32, "float32, as this CPU gains nothing from bfloat16"
    return torch.float32, f"float32 on {device.type}" + (", where --amp is not supported" if amp else "")


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 dot products (AVX-512 BF16 or AMX), as far as torch can tell."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def device_report() -> str:
    """The devices of this machine and what training would use, in a few lines."""
    device = choose_device()
    lines = [f"torch {torch.__version__} on Python {platform.python_version()}, {os.cpu_count()} CPU cores"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines.append(f"CUDA device {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        lines.append("no CUDA device" + ("" if torch.version.cuda else " (this torch was built without CUDA)"))
    lines.append(f"would use: {device}, {choose_precision(device)[1]}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--half", nargs=2, metavar=("CKPT", "OUT"), help="write the network of CKPT to OUT in half precision, and stop"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print which device would be used and why, or write a checkpoint for shipping."""
    args = build_parser().parse_args(argv)
    if args.half is None:
        print(device_report())
        return 0
    source, out = args.half
    try:
        contents = read_checkpoint(source)
    except ModelError as error:
        print(f"models.py: {error}", file=sys.stderr)
        return 2
    kept = {key: value for key, value in contents.items() if key not in TRAINING_STATE}
    save_checkpoint(out, kept, half=True)
    print(f"{out}: {contents['model']} in half precision, {Path(out).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
