"""The backbones: from images (N, C, H, W) to features (N, features), each made by a builder that takes a `Preprocess`.

Our own network, the imbalance-aware document's light CNN, torchvision's networks with other first layers and with attention.
`models.MODELS` is the registry of them.

    python -c "import backbones; print(backbones.LightCNN(channels=1, size_px=48, dropout=0.3))"
"""

import math
from collections.abc import Callable
from typing import Any

from faces import Preprocess

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input


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


def light_cnn(preprocess: Preprocess, *, dropout: float) -> tuple[nn.Module, int]:
    """The light CNN's backbone and its number of features; its dropout stands before the features, and none after."""
    return LightCNN(channels=preprocess.channels, size_px=preprocess.size_px, dropout=dropout), 128


class SpatialAttention(nn.Module):
    """Weighs every place of feature maps (N, C, H, W): a 7×7 convolution over their mean and maximum, sigmoid (Woo et al.
    2018, the spatial part)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        summary = torch.cat([maps.mean(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)], dim=1)  # (N, 2, H, W)
        return maps * self.conv(summary).sigmoid()


class ChannelAttention(nn.Module):
    """Weighs every channel of feature maps (N, C, H, W): a bottleneck of C/16 over their means, sigmoid (squeeze and
    excitation, Hu et al. 2018); with `maximum`, added to the same bottleneck over their maxima (Woo et al. 2018)."""

    def __init__(self, channels: int, *, maximum: bool) -> None:
        super().__init__()
        inner = max(8, channels // 16)
        self.bottleneck = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(inplace=True), nn.Linear(inner, channels))
        self.maximum = maximum

    def forward(self, maps: Tensor) -> Tensor:
        weights = self.bottleneck(maps.mean(dim=(2, 3)))
        if self.maximum:
            weights = weights + self.bottleneck(maps.amax(dim=(2, 3)))
        return maps * weights.sigmoid()[:, :, None, None]


# Attention on the last feature maps, by their number of channels.
ATTENTION: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "spatial": SpatialAttention,
    "se": lambda channels: ChannelAttention(channels, maximum=False),
    "cbam": lambda channels: nn.Sequential(ChannelAttention(channels, maximum=True), SpatialAttention(channels)),
}


# A residual network's first layers: kernel, stride and whether a max-pool follows. A 48 px face comes to the first block at
# 12, 24, 24 or 48 px.
STEMS = {"imagenet": (7, 2, True), "stride2": (3, 2, False), "pool": (3, 1, True), "stride1": (3, 1, False)}


SMALL_MAP = 36  # places, up to which one matrix product for all pictures is the faster way to a weight's gradient


class SmallMaps(torch.autograd.Function):
    """A 3×3 convolution with padding 1 of maps (N, C, H, W) by weights (width, C, 3, 3), both in channels-last order, whose
    weights get their gradient from one matrix product over all places of all pictures. oneDNN's way, made for many places a
    picture, takes seven times as long at 3×3 places and 320 channels."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride = stride
        return functional.conv2d(maps, weight, stride=stride, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = conv2d_input(maps.shape, weight, gradient, stride=ctx.stride, padding=1)
        if ctx.needs_input_grad[1]:
            padded = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (N, H + 2, W + 2, C)
            patches = padded.unfold(1, 3, ctx.stride).unfold(2, 3, ctx.stride).permute(0, 1, 2, 4, 5, 3)
            rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (places, width)
            product = rows.t() @ patches.reshape(len(rows), -1)  # (width, 9·C)
            of_weight = product.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        return of_maps, of_weight, None


class Convolution(nn.Conv2d):
    """A 3×3 convolution with padding 1 and no bias; SmallMaps where that pays: trained in reduced precision on a CPU."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__(width_in, width, 3, stride, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        stride = self.stride[0]
        reduced = self.training and maps.is_cpu and torch.is_autocast_enabled("cpu")
        if reduced and math.prod(math.ceil(length / stride) for length in maps.shape[2:]) <= SMALL_MAP:
            dtype = torch.get_autocast_dtype("cpu")
            return SmallMaps.apply(maps.to(dtype), self.weight.to(dtype), stride)
        return super().forward(maps)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm around a shortcut (He et al. 2016), (N, width_in, H, W) → (N, width, H/stride, …).

    A shortcut that changes shape averages before its 1×1 convolution (He et al. 2019). The second BatchNorm starts at zero,
    so that the block starts as its shortcut. `attention` is a row of ATTENTION on what is added; while training that is left
    out for a share `drop` of the images (stochastic depth, Huang et al. 2016).
    """

    def __init__(self, width_in: int, width: int, *, stride: int, attention: str, drop: float) -> None:
        super().__init__()
        self.conv1 = Convolution(width_in, width, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Convolution(width, width, stride=1)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)
        self.attention = ATTENTION[attention](width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            # The mean of what there is of an overhanging window; by default ONNX Runtime divides by the whole one.
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))
        self.drop = drop

    def forward(self, maps: Tensor) -> Tensor:
        change = self.bn1(self.conv1(maps)).relu_()
        change = self.attention(self.bn2(self.conv2(change)))
        if self.training and self.drop > 0.0:
            kept = torch.rand(len(maps), 1, 1, 1, device=maps.device) >= self.drop
            change = change * (kept / (1.0 - self.drop)).to(change.dtype)
        return (self.shortcut(maps) + change).relu_()


class FERNet(nn.Sequential):
    """A residual network for 48 px grey faces: a stem of two convolutions, a 3×3 one and a row of STEMS, then `depth` blocks
    each at 1, 2, 4 and 8 times `width`, and the mean over places: 8·width features.

    The share of images whose block is left out rises from 0 to `stochastic_depth` from the first to the last block.
    """

    def __init__(self, *, channels: int, width: int, depth: int, stem: str, attention: str, stochastic_depth: float) -> None:
        kernel, stride, pool = STEMS[stem]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 2, width, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        if pool:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        width_in = width
        for block in range(4 * depth):
            out = width * 2 ** (block // depth)
            stride = 2 if block in (depth, 2 * depth, 3 * depth) else 1
            drop = stochastic_depth * block / (4 * depth - 1)
            layers.append(ResidualBlock(width_in, out, stride=stride, attention=attention, drop=drop))
            width_in = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def fernet(preprocess: Preprocess, *, width: int, **options: Any) -> tuple[nn.Module, int]:
    """Our own network's backbone and its number of features."""
    return FERNet(channels=preprocess.channels, width=width, **options), 8 * width


def torchvision_backbone(name: str, classifier: str, **options: Any) -> tuple[Any, int]:
    """torchvision's network `name` with random weights, its last linear layer `classifier` replaced by Identity, and the
    number of features which that layer took."""
    from torchvision.models import get_model

    backbone = get_model(name, weights=None, **options)
    path, _, attribute = classifier.rpartition(".")
    parent: Any = backbone.get_submodule(path)
    last = getattr(parent, attribute) if not attribute.isdecimal() else parent[int(attribute)]
    setattr(parent, attribute, nn.Identity())
    return backbone, last.in_features


def with_attention(backbone: Any, features: int, attention: str) -> None:
    """Put a row of ATTENTION before the last pooling, where all other tensors keep their names."""
    if attention != "none":
        backbone.avgpool = nn.Sequential(ATTENTION[attention](features), backbone.avgpool)


def resnet(depth: int) -> Callable[..., tuple[nn.Module, int]]:
    """A builder of torchvision's ResNet of this depth, with a stem of STEMS and attention of ATTENTION."""

    def build(preprocess: Preprocess, *, attention: str, stem: str) -> tuple[nn.Module, int]:
        backbone, features = torchvision_backbone(f"resnet{depth}", "fc")
        if preprocess.channels != 3 or stem != "imagenet":
            kernel, stride, pool = STEMS[stem]
            backbone.conv1 = nn.Conv2d(preprocess.channels, 64, kernel, stride, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
            if not pool:
                backbone.maxpool = nn.Identity()
        with_attention(backbone, features, attention)
        return backbone, features

    return build


def convolutional(name: str, classifier: str, **given: Any) -> Callable[..., tuple[nn.Module, int]]:
    """A builder of another of torchvision's convolutional networks, given its own arguments, with attention of ATTENTION."""

    def build(preprocess: Preprocess, *, attention: str) -> tuple[nn.Module, int]:
        backbone, features = torchvision_backbone(name, classifier, **given)
        with_attention(backbone, features, attention)
        return backbone, features

    return build
