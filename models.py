"""The networks: backbones with heads, their registry, weights from elsewhere, checkpoints, device and precision.

Every network is an `ExpressionNet`: a backbone that ends in a feature vector, a classification head, and where asked a
regression head for valence and arousal. `MODELS` is the registry. A checkpoint holds all that is needed to use it:
`save_checkpoint` is the only writer and `load_checkpoint` the only reader.

    python models.py                                            # the device check: what would be used here, and why
"""

import os
import platform
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from faces import Preprocess

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones import convolutional, fernet, light_cnn, resnet, torchvision_backbone
from command_line import Parser
from labels import LABEL_SETS, LabelSet, label_set_of
from onnx_network import ModelError, OnnxNetwork, head_for, is_onnx

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What VGGFace2 weights want their input to be: as the multitask report has it, or, for ports of the authors' Caffe
# networks, BGR on the 0..255 scale less VGGFace2's mean (91.4953, 103.8827, 131.0912).
VGGFACE2_PREPROCESS: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "order": "rgb"},
    "bgr255": {
        "mean": (91.4953 / 255, 103.8827 / 255, 131.0912 / 255),
        "std": (1 / 255, 1 / 255, 1 / 255),
        "order": "bgr",
    },
}
VOTED = LABEL_SETS["ferplus8"]  # what the second classifier of a network tells apart
# Of some networks; the registry says of which.
BACKBONE_OPTIONS = ("attention", "stem", "width", "depth", "stochastic_depth")
CHECKPOINT_FORMAT = 1
VGGFACE2_CKPT = "weight/resnet50_vggface2.pth"  # where the multitask document keeps them
HEAD_KEYS = ("classifier.", "regressor.", "votes.")  # not of a backbone, as fc. is not
MIN_LOADED_FRACTION = 0.9  # of the backbone's tensors and of the file's; fewer means that it is of another network


class Output(NamedTuple):
    """What a network returns: logits (N, classes), and affect (N, 2) [valence, arousal] and the logits of the FER+ votes
    (N, 8), each None without that head."""

    logits: Tensor
    affect: Tensor | None
    votes: Tensor | None = None


class CosineClassifier(nn.Module):
    """s·cos θ between the features and each class's weight vector: the head of ArcFace, and of LDAM's networks.

    Margins belong to the training and stand in its loss. Always float32: near θ = 0 a cosine of fewer digits is 1.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.xavier_uniform_(self.weight)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(features.float(), dim=1)
            return self.scale * functional.linear(directions, functional.normalize(self.weight.float(), dim=1))


# (features, classes, scale) → the classification head. "arcface" and "cosine" differ in the training's margin alone.
HEADS: dict[str, Callable[[int, int, float], Any]] = {
    "softmax": lambda features, classes, scale: nn.Linear(features, classes),
    "arcface": CosineClassifier,
    "cosine": CosineClassifier,
}


@dataclass(frozen=True)
class HeadSpec:
    """What stands on top of a backbone: classes, a row of HEADS and its scale, valence and arousal or not, dropout, and a
    second classifier for the FER+ votes (VOTED) or not."""

    classes: int
    affect: bool
    dropout: float
    head: str = "softmax"
    scale: float = 30.0
    votes: bool = False


class ExpressionNet(nn.Module):
    """A backbone (N, C, H, W) → (N, features), dropout on the features, and the heads on top of it."""

    def __init__(self, backbone: nn.Module, features: int, heads: HeadSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(heads.dropout)
        self.classifier: Any = HEADS[heads.head](features, heads.classes, heads.scale)
        self.regressor = nn.Linear(features, 2) if heads.affect else None
        self.votes = nn.Linear(features, len(VOTED)) if heads.votes else None
        self.frozen: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Output:
        features = self.dropout(self.backbone(images))  # (N, features)
        return Output(
            self.classifier(features),
            self.regressor(features) if self.regressor is not None else None,
            self.votes(features) if self.votes is not None else None,
        )

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


def vit(preprocess: Preprocess) -> tuple[nn.Module, int]:
    """torchvision's ViT-B/16. Raises ModelError for sizes that its 16 px patches do not fill."""
    if preprocess.size_px % 16:
        raise ModelError(f"vit_b_16 sees patches of 16 px, which do not fill {preprocess.size_px} px – give --img_size 224")
    return torchvision_backbone("vit_b_16", "heads.head", image_size=preprocess.size_px)


@dataclass(frozen=True)
class ModelSpec:
    """A row of the registry: how a backbone is built, and the input it is meant for unless a recipe says otherwise.

    `options` are the builder's keyword arguments with their defaults; "dropout" among them stands in the backbone, not
    before the heads.
    """

    build: Callable[..., tuple[nn.Module, int]]
    size_px: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float
    any_size: bool = True  # whether it sees pictures of another size than it was built for
    imagenet: str | None = None  # torchvision's name of the weights, None where there are none
    options: dict[str, Any] = field(default_factory=dict)
    # What the documents' staged freezing holds still: in stage one all but the last block, then all but the last two.
    stages: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


RESNET_STAGES = (("conv1", "bn1", "layer1", "layer2", "layer3"), ("conv1", "bn1", "layer1", "layer2"))


def photo_spec(build: Callable[..., tuple[nn.Module, int]], imagenet: str, **fields: Any) -> ModelSpec:
    """The registry's row for a network of 224 px photos in colour."""
    return ModelSpec(build, 224, 3, IMAGENET_MEAN, IMAGENET_STD, 0.7, imagenet=f"{imagenet}_Weights.IMAGENET1K_V1", **fields)


def resnet_spec(depth: int, attention: str = "none") -> ModelSpec:
    """The registry's row for a ResNet of the documents."""
    options = {"attention": attention, "stem": "imagenet"}
    return photo_spec(resnet(depth), f"ResNet{depth}", options=options, stages=RESNET_STAGES)


MODELS = {
    "lightcnn": ModelSpec(light_cnn, 48, 1, (0.5,), (0.5,), 0.3, any_size=False, options={"dropout": 0.3}),
    # Mean and spread of FER2013's Training pixels.
    "fernet": ModelSpec(
        fernet,
        size_px=48,
        channels=1,
        mean=(0.50774,),
        std=(0.25501,),
        dropout=0.3,
        options={"width": 48, "depth": 2, "stem": "stride2", "attention": "none", "stochastic_depth": 0.0},
    ),
    "resnet18": resnet_spec(18),
    "resnet34": resnet_spec(34),
    "resnet50": resnet_spec(50),
    "resnet34_attention": resnet_spec(34, "spatial"),
    "resnet18_gray": ModelSpec(
        resnet(18), 48, 1, (0.0,), (1.0,), 0.0, options={"attention": "none", "stem": "imagenet"}, stages=RESNET_STAGES
    ),
    "efficientnet_b0": photo_spec(
        convolutional("efficientnet_b0", "classifier.1", dropout=0.0), "EfficientNet_B0", options={"attention": "none"}
    ),
    "convnext_tiny": photo_spec(
        convolutional("convnext_tiny", "classifier.2"), "ConvNeXt_Tiny", options={"attention": "none"}
    ),
    "vit_b_16": photo_spec(vit, "ViT_B_16", any_size=False),
}


def build_model(
    name: str,
    *,
    classes: int,
    affect: bool,
    preprocess: Preprocess,
    dropout: float | None = None,
    head: str = "softmax",
    scale: float = 30.0,
    votes: bool = False,
    **options: Any,
) -> ExpressionNet:
    """The network `name` of the registry with fresh weights; `dropout` and `options` (BACKBONE_OPTIONS) that are None
    default to the registry's. Raises KeyError for an unknown name, ModelError for an option that the network lacks.
    """
    spec = MODELS[name]
    given = {key: value for key, value in options.items() if value is not None}
    lacking = given.keys() - spec.options.keys()
    if lacking:
        raise ModelError(f"{name} has no place for --{' and --'.join(sorted(lacking))} – leave it out")
    dropout = spec.dropout if dropout is None else dropout
    chosen = spec.options | given
    inside = "dropout" in chosen
    if inside:
        chosen["dropout"] = dropout
    backbone, features = spec.build(preprocess, **chosen)
    heads = HeadSpec(classes, affect, dropout=0.0 if inside else dropout, head=head, scale=scale, votes=votes)
    return ExpressionNet(backbone, features, heads)


# --- weights from elsewhere ---------------------------------------------------------------------------------------------


def load_backbone(model: ExpressionNet, state: dict[str, Tensor], *, origin: str) -> str:
    """Copy what fits of a state dict into the backbone, skipping `fc.*`; returns one line on what was loaded.

    Key layouts in circulation are understood: bare, behind `module.` or `backbone.`, or inside {"state_dict": …}.
    Raises ModelError where less than 90% of the backbone's tensors are found with their shapes, or less than 90% of the
    file's are of use: a deeper network of the same kind has all that a smaller one wants.
    """
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]  # type: ignore[assignment]
    own = model.backbone.state_dict()
    found, unused = {}, []
    for name, value in state.items():
        key = name.removeprefix("module.").removeprefix("backbone.")
        if key in own and isinstance(value, Tensor) and own[key].shape == value.shape:
            found[key] = value
        elif isinstance(value, Tensor) and not key.startswith("fc."):
            unused.append(name)
    # num_batches_tracked is bookkeeping that many files lack.
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in found]
    if len(missing) > (1.0 - MIN_LOADED_FRACTION) * len(needed):
        raise ModelError(
            f"{origin}: only {len(needed) - len(missing)} of {len(needed)} tensors fit this network (not {missing[0]}, for "
            "one) – give another file, or --weights none"
        )
    foreign = [name for name in unused if not name.removeprefix("module.").startswith(HEAD_KEYS)]
    if len(foreign) > (1.0 - MIN_LOADED_FRACTION) * (len(found) + len(foreign)):
        raise ModelError(
            f"{origin}: only {len(found)} of its {len(found) + len(foreign)} tensors are of use here (not {foreign[0]}, for "
            "one), so it is of another network – give another file, or --weights none"
        )
    model.backbone.load_state_dict(found, strict=False)
    rest = f"; not found: {', '.join(missing)}" if missing else ""
    rest += f"; not used of the file: {', '.join(unused)}" if unused else ""
    return f"{origin}: {len(needed) - len(missing)} of {len(needed)} backbone tensors loaded{rest}"


def load_pretrained(model: ExpressionNet, *, name: str, weights: str, vggface2_ckpt: str) -> str:
    """Initialise the backbone from `weights` ("auto", "vggface2", "imagenet", "none"); returns one line on what was done.

    "auto" takes the VGGFace2 file where it exists (that of the default name, a ResNet-50's, for that network alone), else
    ImageNet weights, which torchvision keeps in its cache or fetches from download.pytorch.org and checks by hash. Raises
    ModelError where the weights cannot be had, or a file that was named by hand is not there.
    """
    by_hand = vggface2_ckpt != VGGFACE2_CKPT
    wanted = weights == "auto" and (by_hand or name == "resnet50")
    if weights == "auto":
        weights = "vggface2" if by_hand or (wanted and Path(vggface2_ckpt).is_file()) else "imagenet"
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
            f"{f'put VGGFace2 weights at {vggface2_ckpt}, ' if wanted else ''}or start from nothing with --weights none"
        ) from error
    return load_backbone(model, state, origin=f"{f'no {vggface2_ckpt}, so ' if wanted else ''}{imagenet}")


def better_preprocess(model: ExpressionNet, chosen: str) -> str | None:
    """The row of VGGFACE2_PREPROCESS that the network's weights were made with, where that is not the chosen one.

    None where it is, and where it cannot be told: a network without BatchNorm, or that sees grey pictures.

    The first BatchNorm remembers the variance of the first convolution's output. Smooth noise with the spread of a photo
    stands for the photos: the scales in question differ by a factor of 58, so their variances by more than 3,000.
    """
    statistics: Any = next((module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)), None)
    convolution = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
    if statistics is None or convolution.in_channels != 3:
        return None
    generator = torch.Generator().manual_seed(0)
    noise = functional.interpolate(torch.randn(8, 3, 16, 16, generator=generator), size=(224, 224), mode="bilinear")
    photos = 0.5 + 0.2 * noise / noise.std()  # on the 0..1 scale
    distances = {}
    for name, values in VGGFACE2_PREPROCESS.items():
        mean, std = (torch.tensor(values[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            variance = convolution((photos - mean) / std).var(dim=(0, 2, 3))
        ratio = (statistics.running_var / variance.clamp(min=1e-12)).clamp(min=1e-12)
        distances[name] = abs(ratio.log().median().item())
    best = min(distances, key=distances.__getitem__)
    return None if best == chosen else best


def transfer(model: ExpressionNet, labels: LabelSet, source: "Checkpoint", *, origin: str) -> str:
    """Start from another checkpoint: its backbone, and of its head the rows of the classes that `labels` also has, by
    name. Returns one line on what was taken. Raises ModelError where less than 90% of the backbone fits.
    """
    line = load_backbone(model, source.model.backbone.state_dict(), origin=origin)
    kept = []
    own, others = model.classifier.state_dict(), source.model.classifier.state_dict()
    if own.keys() == others.keys():
        for index, name in enumerate(labels.names):
            if name in source.labels.names:
                kept.append(name)
                for key, rows in own.items():
                    rows[index] = others[key][source.labels.names.index(name)]
        model.classifier.load_state_dict(own)
    if model.regressor is not None and source.model.regressor is not None:
        model.regressor.load_state_dict(source.model.regressor.state_dict())
    if model.votes is not None and source.model.votes is not None:
        model.votes.load_state_dict(source.model.votes.state_dict())
    fresh = [name for name in labels.names if name not in kept]
    return f"{line}; head kept by name: {', '.join(kept) or 'nothing'}; new: {', '.join(fresh) or 'nothing'}"


# --- checkpoints --------------------------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """A network as it came from a file, in eval mode on the CPU, with what it needs to be used."""

    model: ExpressionNet
    labels: LabelSet
    preprocess: Preprocess
    info: dict[str, Any]  # everything else in the file: model, epoch, metrics, split_id, versions, exp …


def describe(name: str, *, labels: LabelSet, preprocess: Preprocess, affect: bool, **model_args: Any) -> dict[str, Any]:
    """The part of a checkpoint from which `load_checkpoint` rebuilds the network, in plain types.

    `model_args` are those of `build_model`: dropout, head, scale, votes, BACKBONE_OPTIONS.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "model": name,
        "model_args": {"affect": affect, **model_args},
        "label_set": labels.name,
        "labels": list(labels.names),
        "preprocess": preprocess.to_dict(),
        "versions": versions(),
    }


def save_checkpoint(path: str | os.PathLike[str], contents: dict[str, Any]) -> None:
    """Write a checkpoint (the dict of `describe` with at least `state_dict` added) to a temporary name, then rename it.

    Raises ModelError or OSError where that cannot be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two trainings may write the same --save_path
    try:
        torch.save(contents, temporary)
        temporary.replace(path)
    except RuntimeError as error:  # which torch raises where it cannot write
        raise ModelError(f"{path} cannot be written – is the disk full, or may this folder not be written to?") from error
    finally:
        temporary.unlink(missing_ok=True)


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a path names: a run folder stands for its best.pth."""
    return Path(path) / "best.pth" if Path(path).is_dir() else Path(path)


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict in a torch file, on the CPU, with weights_only=True. Raises ModelError where that is not what it is."""
    path = checkpoint_path(path)
    if not path.is_file():
        raise ModelError(f"{path} not found – is the path right? A network is made by: make train MODEL=lightcnn")
    if not os.access(path, os.R_OK):
        raise ModelError(f"{path} may not be read – look at its permissions")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        raise ModelError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}) – give one of train.py (.pth)"
        ) from error
    if not isinstance(contents, dict):
        raise ModelError(f"{path} holds a {type(contents).__name__}, not a checkpoint – expected a dict of tensors")
    return contents


# The imbalance-aware study saves {"backbone", "head", …}. Its classes are folders in alphabetical order, and it scores
# whole pictures.
STUDY_LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
STUDY_PREPROCESS = Preprocess(48, 1, (0.5,), (0.5,))
STUDY_HEADS = {("fc.weight", "fc.bias"): "softmax", ("weight",): "arcface"}


def from_study(contents: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of the imbalance-aware study as one of ours: the same tensors in the same order, under our names.

    It does not say on which rows it was trained: its `split_id` is None. Raises ModelError where the tensors are not those
    of the light CNN.
    """
    head = STUDY_HEADS.get(tuple(contents["head"]))
    labels = LabelSet("custom", STUDY_LABELS)
    arguments: dict[str, Any] = {"affect": False, "head": head or "softmax"}
    model = build_model("lightcnn", classes=len(labels), preprocess=STUDY_PREPROCESS, **arguments)
    own = model.state_dict()
    tensors = [*contents["backbone"].values(), *contents["head"].values()]
    if head is None or [tensor.shape for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise ModelError(
            f"{path} is laid out like the imbalance-aware study's checkpoints, but its tensors are not those of the light "
            "CNN with 7 classes – only those can be read"
        )
    description = describe("lightcnn", labels=labels, preprocess=STUDY_PREPROCESS, **arguments)
    return description | {
        "state_dict": dict(zip(own, tensors, strict=True)),
        "epoch": contents.get("epoch"),
        "recipe": "imbalance-aware study",
        "split_id": None,
    }


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of one of our checkpoints, or of the imbalance-aware study's as one of ours. Raises ModelError."""
    contents = read_torch(path)
    if isinstance(contents.get("backbone"), dict) and isinstance(contents.get("head"), dict):
        return from_study(contents, path)
    missing = {"format", "model", "model_args", "labels", "preprocess", "state_dict"} - contents.keys()
    if missing:
        raise ModelError(f"{path} is not a checkpoint of this project (it lacks {', '.join(sorted(missing))})")
    if contents["format"] != CHECKPOINT_FORMAT:
        raise ModelError(f"{path} has checkpoint format {contents['format']}, this program reads {CHECKPOINT_FORMAT}")
    if contents["model"] not in MODELS:
        raise ModelError(f"{path} holds the network {contents['model']!r}, which is none of {', '.join(MODELS)}")
    return contents


def load_checkpoint(path: str | os.PathLike[str], *, label_set: str | None = None) -> Checkpoint:
    """Rebuild the network of a checkpoint: float32, eval mode, on the CPU. Raises ModelError.

    With a head for the FER+ votes, `label_set` chooses the network's classifier, by `head_for`. An ONNX file of export.py
    answers in the place of its checkpoint, on the CPU.
    """
    if is_onnx(path):
        network = OnnxNetwork(path, threads=torch.get_num_threads())
        head = "logits" if label_set is None else head_for(network.heads, LABEL_SETS[label_set])
        model: Any = OnnxModule(network, head)
        return Checkpoint(model, network.heads[model.head], network.preprocess, network.info)
    contents = read_checkpoint(path)
    preprocess = Preprocess.from_dict(contents["preprocess"])
    model = build_model(contents["model"], classes=len(contents["labels"]), preprocess=preprocess, **contents["model_args"])
    try:
        model.load_state_dict(contents.pop("state_dict"))  # half-precision files are widened by the copy
    except RuntimeError as error:
        raise ModelError(f"{path}: its weights do not fit the network {contents['model']}") from error
    contents["parameters"] = sum(values.numel() for values in model.parameters())  # of both heads
    checkpoint = Checkpoint(model.eval(), label_set_of(contents["labels"]), preprocess, contents)
    if label_set is not None and head_for(heads_of(checkpoint), LABEL_SETS[label_set]) == "votes":
        model.classifier, checkpoint = model.votes, checkpoint._replace(labels=VOTED)
    return checkpoint


def heads_of(checkpoint: Checkpoint) -> dict[str, LabelSet]:
    """The label set of each classifier of a checkpoint's network, by the name of its output: `logits`, and `votes`."""
    return {"logits": checkpoint.labels} | ({"votes": VOTED} if checkpoint.model.votes is not None else {})


def voted(checkpoint: Checkpoint) -> bool:
    """Whether FER+ votes are behind a network: it has a head for them or their classes, or has started or learnt from such a
    network."""
    model: Any = checkpoint.model
    heads = model.network.heads if isinstance(model, OnnxModule) else heads_of(checkpoint)
    return bool(checkpoint.info.get("voted")) or VOTED in heads.values()


class TorchNetwork:
    """A checkpoint with the interface of `onnx_network.OnnxNetwork`: numpy arrays in and out. Raises ModelError."""

    def __init__(self, path: str | os.PathLike[str], device: torch.device) -> None:
        checkpoint = load_checkpoint(path)
        self.model = checkpoint.model.to(device)
        self.device = device
        self.info, self.preprocess = checkpoint.info, checkpoint.preprocess
        self.heads = heads_of(checkpoint)
        self.temperatures = dict.fromkeys(self.heads, 1.0)
        self.affect = self.model.regressor is not None and self.info.get("affect_rows", 0) > 0

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images, float32 (N, C, H, W), → the outputs that the network has, by name, float32."""
        with torch.inference_mode():
            output = self.model(torch.from_numpy(images).to(self.device))
        said = output._asdict().items()
        return {name: values.float().cpu().numpy() for name, values in said if values is not None}


class OnnxModule(nn.Module):
    """An ONNX file in the place of an `ExpressionNet`, with the classifier `head` as its logits, which are divided by the
    file's temperatures, as predict.py does."""

    def __init__(self, network: OnnxNetwork, head: str = "logits") -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.votes = None

    def forward(self, images: Tensor) -> Output:
        temperatures = self.network.temperatures
        answers = self.network(images.cpu().contiguous().numpy())
        said = {name: torch.from_numpy(values) / temperatures.get(name, 1.0) for name, values in answers.items()}
        return Output(said[self.head], said.get("affect"), said.get("votes"))


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


# --- device and precision -----------------------------------------------------------------------------------------------


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to `dtype`, or nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def choose_device(name: str = "auto") -> torch.device:
    """The device to use: CUDA, then Apple's MPS, then the CPU. Under torchrun each process has a GPU of its own, unless one
    is named by its number. Raises ModelError where the one asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
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


def main(argv: list[str] | None = None) -> int:
    """Print which device would be used, and why."""
    parser = Parser(__doc__)
    parser.parse_args(argv)
    print(device_report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
