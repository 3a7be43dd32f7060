"""`FERDataset`: from parquet rows to tensors, with the training augmentations and the evaluation transform.

The evaluation transform is exactly `faces.Preprocess`, so that a photo at prediction time meets the network as the
validation images did. As a script it writes a contact sheet of an augmented batch, to look at before training:

    python fer_transform.py --meta metadata_train.parquet --augment report --out runs/batch.png
"""

import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import Parser, line_of

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks the network for its newest version otherwise

from faces import ImageError, Preprocess, read_image, to_channels

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from labels import LABEL_SETS, LabelSet, remap
from layouts import FERPLUS_VOTES, ferplus_distribution, ferplus_majority
from metadata_parallel import MetadataError, read_metadata, resolve_data_root

IMAGENET_224 = Preprocess(size_px=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IN_MEMORY_MAX_BYTES = 8 * 2**30
VOTES = tuple(f"votes_{name}" for name in FERPLUS_VOTES)  # columns of the parquet
SIZE_MIN_PX = 8  # below it the light CNN's three poolings leave nothing

# --- augmentation -------------------------------------------------------------------------------------------------------


def report_augmentation(size_px: int) -> list[Any]:
    """The training augmentations of the multitask report, in its order; the strengths are ours, as it states none."""
    import albumentations as A

    hole = (0.05, 0.15)
    return [
        A.RandomResizedCrop(size=(size_px, size_px), scale=(0.8, 1.0), ratio=(0.9, 1.1)),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, p=0.5),
        A.Affine(translate_percent=(-0.05, 0.05), scale=(0.9, 1.1), rotate=(-15, 15), p=0.5),
        A.CoarseDropout(num_holes_range=(1, 4), hole_height_range=hole, hole_width_range=hole, p=0.3),
        A.ISONoise(color_shift=(0.01, 0.03), intensity=(0.05, 0.2), p=0.2),
        A.OneOf([A.MedianBlur(blur_limit=3), A.GaussianBlur(blur_limit=(3, 3))], p=0.2),
        A.CLAHE(clip_limit=(1.0, 2.0), tile_grid_size=(4, 4), p=0.2),
    ]


def lightcnn_augmentation(size_px: int) -> list[Any]:
    """The training augmentations of the imbalance-aware document: flip, ±15°, a 44 px crop of the 48 px face padded by
    4 px, resized to 48 px (other sizes in proportion); what turns in from outside is black.

    Rotation, crop and resize are one affine map: each interpolation of its own would soften the training images further
    against those of the evaluation.
    """
    import albumentations as A

    zoom = 48 / 44
    shift = 6 / 48 * zoom  # a crop of 44 from 56 px moves by up to 6 px either way, as a share of the zoomed picture
    return [
        A.Resize(size_px, size_px),
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-15, 15), scale=(zoom, zoom), translate_percent=(-shift, shift), fill=0, p=1.0),
    ]


def two_phase_augmentation(size_px: int) -> list[Any]:
    """The training augmentations of the two-phase document: flip, rotation and translation (one affine map), colour
    jitter, random erasing (Zhong et al. 2020); the strengths are ours, as it states none."""
    import albumentations as A

    return [
        A.Resize(size_px, size_px),
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-15, 15), translate_percent=(-0.1, 0.1), fill=0, p=1.0),
        A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0, p=1.0),
        A.Erasing(scale=(0.02, 0.2), ratio=(0.3, 3.3), fill=127, p=0.5),
    ]


def four_class_augmentation(size_px: int) -> list[Any]:
    """The training augmentations of the four-class document: flip, ±10°, a crop of 90 to 100%, of height and width each on
    its own as torchvision's RandomResizedCrop, moved by up to 5%. Rotation and crop are one affine map, so that training
    pictures are not softened twice; what turns or moves in from outside is black."""
    import albumentations as A

    return [
        A.Resize(size_px, size_px),
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-10, 10), scale=(1.0, 1 / 0.9), translate_percent=(-0.05, 0.05), fill=0, p=1.0),
    ]


def randaugment_augmentation(size_px: int) -> list[Any]:
    """RandAugment (Cubuk et al. 2020) for grey faces: flip, then two of its operations, the same one perhaps twice, up to
    the strengths that magnitude 9 of 30 has in torchvision, which has them at just these. Its colour operation, which does
    nothing to grey, is left out.
    """
    import albumentations as A

    shear_deg, shift, share = 5.1, 0.136, 0.27
    still = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
    operations = [
        A.NoOp(p=1.0),
        A.Affine(shear={"x": (-shear_deg, shear_deg), "y": (0.0, 0.0)}, fill=0, p=1.0),
        A.Affine(shear={"x": (0.0, 0.0), "y": (-shear_deg, shear_deg)}, fill=0, p=1.0),
        A.Affine(translate_percent={"x": (-shift, shift), "y": (0.0, 0.0)}, fill=0, p=1.0),
        A.Affine(translate_percent={"x": (0.0, 0.0), "y": (-shift, shift)}, fill=0, p=1.0),
        A.Affine(rotate=(-9, 9), fill=0, p=1.0),
        A.ColorJitter(**still | {"brightness": (1 - share, 1 + share)}, p=1.0),
        A.ColorJitter(**still | {"contrast": (1 - share, 1 + share)}, p=1.0),
        A.Sharpen(alpha=(0.0, share / 13), lightness=(1.0, 1.0), p=1.0),  # Pillow's kernel is a 13th as sharp
        A.Posterize(num_bits=7, p=1.0),
        A.Solarize(threshold_range=(0.7, 0.7), p=1.0),
        A.AutoContrast(method="pil", p=1.0),
        A.Equalize(p=1.0),
    ]
    return [A.Resize(size_px, size_px), A.HorizontalFlip(p=0.5), A.RandomOrder(operations, n=2, replace=True, p=1.0)]


AUGMENTATIONS: dict[str, Callable[[int], list[Any]]] = {
    "report": report_augmentation,
    "lightcnn": lightcnn_augmentation,
    "two_phase": two_phase_augmentation,
    "four_class": four_class_augmentation,
    "randaugment": randaugment_augmentation,
}

# The central share of the sides that a network sees which was trained on nearer pictures throughout: whole ones cost the
# light CNN three points of accuracy on FER2013's PublicTest.
KEEP = {"lightcnn": 44 / 48}


@dataclass(frozen=True)
class BatchAugmentation:
    """Training augmentations of a whole batch on its device: flip, one affine map, light, random erasing.

    rotate_deg: up to so much either way; scale: the range of the zoom; shift: up to so much of the width either way;
    brightness: up to so much of the 0..1 scale is added; contrast: up to so much more or less of the distance from the
    picture's mean; erase: the share of pictures of which a rectangle becomes mid-grey (Zhong et al. 2020), erase_area: the
    range of its share of the picture; unwarped: the share of pictures that the affine map leaves alone. What turns in from
    outside repeats the edge.
    """

    rotate_deg: float
    scale: tuple[float, float]
    shift: float
    brightness: float
    contrast: float
    erase: float
    erase_area: tuple[float, float]
    unwarped: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) on the 0..255 scale → float32 (N, C, H, W) on the 0..1 scale, by the numbers of `generator`, of
        the same device."""
        count, _, height, width = images.shape

        def draw(low: float, high: float) -> Tensor:
            return torch.rand(count, generator=generator, device=images.device) * (high - low) + low

        warped = (draw(0.0, 1.0) >= self.unwarped).float()
        angle = draw(-self.rotate_deg, self.rotate_deg).deg2rad() * warped
        inverse_zoom = draw(*self.scale) ** -warped
        mirror = torch.where(draw(0.0, 1.0) < 0.5, -1.0, 1.0)
        across, down = (draw(-2 * self.shift, 2 * self.shift) * warped for _ in range(2))  # a picture is 2 wide
        cosine, sine = angle.cos() * inverse_zoom, angle.sin() * inverse_zoom
        # From a place in the new picture to the one in the old: moved back, turned back and zoomed back, mirrored.
        theta = torch.stack(
            [
                torch.stack([mirror * cosine, mirror * sine, -mirror * (cosine * across + sine * down)], dim=1),
                torch.stack([-sine, cosine, sine * across - cosine * down], dim=1),
            ],
            dim=1,
        )  # (N, 2, 3)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        for axis, length in enumerate((width, height)):  # what padding_mode="border" does, which MPS does not know:
            grid[..., axis].clamp_(1.0 / length - 1.0, 1.0 - 1.0 / length)  # to the middles of the outermost pixels
        pictures = functional.grid_sample(images.float() / 255.0, grid, mode="bilinear", align_corners=False)
        mean = pictures.mean(dim=(1, 2, 3))
        gain, lift = draw(1.0 - self.contrast, 1.0 + self.contrast), draw(-self.brightness, self.brightness)
        pictures = pictures * each(gain) + each(mean * (1.0 - gain) + lift)
        area, aspect = draw(*self.erase_area), draw(math.log(0.3), math.log(3.3)).exp()
        tall, wide = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)  # shares of the sides
        top, left = draw(0.0, 1.0) * (1.0 - tall), draw(0.0, 1.0) * (1.0 - wide)
        rows = (torch.arange(height, device=images.device) + 0.5)[None, :, None] / height
        columns = (torch.arange(width, device=images.device) + 0.5)[None, None, :] / width
        inside = (rows >= top[:, None, None]) & (rows < (top + tall)[:, None, None])
        inside = inside & (columns >= left[:, None, None]) & (columns < (left + wide)[:, None, None])  # (N, H, W)
        inside &= (draw(0.0, 1.0) < self.erase)[:, None, None]
        return pictures.clamp(0.0, 1.0).masked_fill(inside[:, None], 0.5)


def each(values: Tensor) -> Tensor:
    """One value an image, (N,) → (N, 1, 1, 1)."""
    return values[:, None, None, None]


BATCH_AUGMENTATIONS = {
    # A warped picture is softer than the one it is made of; a network that saw no other reads softened faces better than
    # faces as they are (0.760 against 0.752 of FER+'s validation rows, half of each pixel from the 3×3 round it).
    "fernet": BatchAugmentation(
        rotate_deg=15.0, scale=(0.87, 1.15), shift=0.1, brightness=0.15, contrast=0.3, erase=0.25, erase_area=(0.02, 0.2),
        unwarped=0.25,
    ),
    # Half and about one and a half times as much, to measure what the strengths above are worth.
    "fernet_light": BatchAugmentation(
        rotate_deg=7.5, scale=(0.93, 1.07), shift=0.05, brightness=0.075, contrast=0.15, erase=0.125, erase_area=(0.02, 0.1),
        unwarped=0.25,
    ),
    "fernet_strong": BatchAugmentation(
        rotate_deg=22.5, scale=(0.8, 1.25), shift=0.15, brightness=0.225, contrast=0.45, erase=0.375, erase_area=(0.02, 0.3),
        unwarped=0.25,
    ),
}  # fmt: skip


class Augmentation:
    """A training transform: uint8 image and seeds → float32 (C, H, W), ending in Normalize and ToTensorV2.

    All transforms of one image draw from one generator. `Compose.set_random_seed` would start each of them from the same
    number, which ties a flip to a rotation.
    """

    def __init__(self, name: str, preprocess: Preprocess) -> None:
        import albumentations as A

        # Colour transforms and ISONoise need three channels, so grey networks are augmented in RGB and made grey after.
        to_grey = [A.ToGray(num_output_channels=1, p=1.0)] if preprocess.channels == 1 else []
        step = -1 if preprocess.order == "bgr" else 1  # augmented in RGB, turned round after
        normalize = A.Normalize(mean=preprocess.mean[::step], std=preprocess.std[::step], max_pixel_value=255.0)
        self.flip_channels = preprocess.order == "bgr"
        self.compose = A.Compose([*AUGMENTATIONS[name](preprocess.size_px), *to_grey, normalize, A.ToTensorV2()])

    def __call__(self, image: np.ndarray, *seeds: int) -> Tensor:
        generator = np.random.default_rng(seeds)
        self.compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        tensor = self.compose(image=to_channels(image, 3))["image"].float()
        return tensor.flip(0) if self.flip_channels else tensor


# --- dataset ------------------------------------------------------------------------------------------------------------


class PictureError(MetadataError):
    """A row's picture that cannot be read; the message is one line.

    A worker process of a loader hands an error on as the text of its traceback, whose last line is the message.
    """

    def __str__(self) -> str:
        return super().__str__().splitlines()[-1].removeprefix(f"{__name__}.PictureError: ")


def read_teacher(path: str | os.PathLike[str], rows: Any, labels: LabelSet, y_cls: Tensor) -> np.ndarray:
    """The probabilities (N, classes) float32 that a predictions.parquet of evaluate.py holds for these rows of classes y_cls
    (N,), by name of the class; NaN for rows that it lacks. Raises MetadataError where it is none, of other classes or of
    other rows, which is seen by their labels.
    """
    import pandas as pd

    columns = [f"p_{name}" for name in labels.names]
    if not Path(path).is_file():
        raise MetadataError(f"{path} not found – give the predictions.parquet of a scoring of the training rows")
    try:
        said = pd.read_parquet(path)
        shares = said[columns].to_numpy(np.float32)
        keys, truth = row_keys(said), said["label"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise MetadataError(
            f"{path} holds no probabilities of {', '.join(labels.names)} – make it with: "
            "python evaluate.py TEACHER --meta metadata_train.parquet --out runs/teacher"
        ) from error
    place = {key: at for at, key in enumerate(keys)}
    found = [place.get(key) for key in row_keys(rows)]
    lacking = found.count(None)
    if lacking == len(found):
        raise MetadataError(f"{path} holds none of the training rows – score the teacher on metadata_train.parquet")
    if any(at is not None and truth[at] != labels.names[index] for at, index in zip(found, y_cls.tolist(), strict=True)):
        raise MetadataError(f"{path} gives these rows other labels: it is of another index – score the teacher on this one")
    if lacking:
        print(f"teacher: {path} lacks {lacking} of {len(found)} rows, which have their labels' share of the loss alone")
    return np.stack([np.full(len(labels), np.nan, np.float32) if at is None else shares[at] for at in found])


def shares_among(shares: Tensor, source: LabelSet, labels: LabelSet) -> Tensor:
    """Shares of the classes of `source` (N, classes) as shares of `labels`, summed by name; NaN in rows that have none."""
    summed = shares.new_zeros(len(shares), len(labels))
    for index, target in enumerate(remap(source, labels)):
        if target is not None:
            summed[:, target] += shares[:, index]
    return summed / summed.sum(dim=1, keepdim=True)  # 0 / 0 is NaN


def row_keys(rows: Any) -> list[tuple[str, int]]:
    """What tells rows apart: the path of a picture file, or the index into the pixels of one."""
    return list(zip(rows["path"].fillna("").astype(str), rows["index"].fillna(-1).astype(int), strict=True))


def majority_classes(rows: Any) -> np.ndarray:
    """The class of ferplus8 that won the votes of each row, (N,), −1 where "unknown", "NF" or nobody did."""
    won = ferplus_majority(rows[list(VOTES)].to_numpy())
    return np.where(won < len(LABEL_SETS["ferplus8"]), won, -1)


class FERDataset(Dataset):
    """The rows of a metadata parquet as (image, y_cls, y_reg, soft).

    image: float32 (C, H, W); y_cls: long, the index in `labels`; y_reg: float32 (2,) [valence, arousal] in [−1, 1], NaN
    where missing; soft: shares of classes, float32, NaN where missing: "votes" (8,) where the parquet has FER+ votes,
    "teacher" (classes,) where `teacher` is given: another network's predictions.parquet of these rows, or "votes", which are
    then shares among `labels`.

    `labels` defaults to the parquet's own set; rows whose label it lacks are left out (`left_out` counts them). Labels of
    ferplus8 are the majority of the votes where the parquet has votes. `augment` names a row of AUGMENTATIONS; None gives
    the evaluation transform. What an image is turned into depends on (seed, epoch, row) alone, not on the number of workers;
    but for a row of BATCH_AUGMENTATIONS, which is left to BatchLoader. Raises MetadataError.
    """

    def __init__(
        self,
        parquet: str | os.PathLike[str],
        *,
        labels: LabelSet | None = None,
        preprocess: Preprocess = IMAGENET_224,
        augment: str | None = None,
        seed: int = 0,
        data_root: str | os.PathLike[str] | None = None,
        drop_invalid_va: bool = False,
        teacher: str | os.PathLike[str] | None = None,
    ) -> None:
        rows, self.info = read_metadata(parquet)
        source = LABEL_SETS[self.info["label_set"]]
        self.labels = source if labels is None else labels
        index_of = dict(zip(source.names, remap(source, self.labels), strict=True))
        voted = set(VOTES) <= set(rows.columns)
        if voted and self.labels.name == "ferplus8" != source.name:
            rows = rows.assign(label=[None if won < 0 else self.labels.names[won] for won in majority_classes(rows)])
            index_of = {name: index for index, name in enumerate(self.labels.names)}
        keep = rows["label"].map(index_of).notna()
        if drop_invalid_va:  # the filter of the multitask report; its −2 sentinel is NaN already
            keep &= rows["valence"].notna() & rows["arousal"].notna()
        self.left_out = int((~keep).sum())
        rows = rows[keep].reset_index(drop=True)
        if rows.empty:
            raise MetadataError(f"{parquet} has no usable row (of {self.left_out}) for {self.labels.name}")
        self.rows = rows
        self.y_cls = torch.tensor(rows["label"].map(index_of).to_numpy(dtype=np.int64))
        self.y_reg = torch.tensor(rows[["valence", "arousal"]].to_numpy(dtype=np.float32))
        self.soft: dict[str, Tensor] = {}
        if voted:
            self.soft["votes"] = torch.tensor(ferplus_distribution(rows[list(VOTES)].to_numpy()))
        if teacher == "votes":
            if not voted:
                raise MetadataError(f"{parquet} has no FER+ votes to learn from – index with --ferplus fer2013new.csv")
            self.soft["teacher"] = shares_among(self.soft["votes"], LABEL_SETS["ferplus8"], self.labels)
        elif teacher is not None:
            self.soft["teacher"] = torch.tensor(read_teacher(teacher, rows, self.labels, self.y_cls))
        self.images = None if self.info["images"] is None else Path(parquet).parent / self.info["images"]
        self.pixels: np.ndarray | None = None
        if self.images is not None:
            if not self.images.is_file():
                raise MetadataError(f"{self.images} not found beside {parquet} – run: make metadata")
            if data_root is not None:
                raise MetadataError(
                    f"--data_root: the pictures of {parquet} are in {self.images.name} beside it – leave it out"
                )
            try:
                self.pixels = np.load(self.images, mmap_mode="r", allow_pickle=False)
            except (EOFError, ValueError):  # empty, cut, or no array
                raise MetadataError(f"{self.images} is damaged – run: make metadata") from None
            self.index = rows["index"].to_numpy(dtype=np.int64)
            if self.index.max() >= len(self.pixels):
                raise MetadataError(f"{self.images} is not of {parquet}: it is shorter – run: make metadata")
        else:
            self.root = resolve_data_root(parquet, self.info, data_root)
            self.paths = rows["path"].tolist()
        self.preprocess = preprocess
        self.batch_augmentation = BATCH_AUGMENTATIONS.get(augment or "")
        by_image = augment is not None and self.batch_augmentation is None
        self.augmentation = Augmentation(str(augment), preprocess) if by_image else None
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see the new epoch, too

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pixels": None}  # a spawned worker maps the file itself, instead of being sent all pixels

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self.images is not None:
            self.pixels = np.load(self.images, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.y_cls)

    def places(self) -> set[tuple[str, str]]:
        """Which pictures its rows are: file or data root, and place in it."""
        if self.images is not None:
            file = str(self.images.resolve())
            return {(file, str(index)) for index in self.index}
        root = str(self.root.resolve())
        return {(root, path) for path in self.paths}

    def majority(self) -> np.ndarray | None:
        """The class of ferplus8 that won the votes of each row, (N,), −1 where none of them did; None without votes."""
        return majority_classes(self.rows) if "votes" in self.soft else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of this epoch."""
        self.epoch.fill_(epoch)

    def image(self, row: int) -> np.ndarray:
        """The row's picture as stored: RGB (H, W, 3) or grey (H, W), uint8. Raises MetadataError where it cannot be read."""
        if self.pixels is not None:
            return np.asarray(self.pixels[self.index[row]])
        path = self.root / self.paths[row]
        try:
            return read_image(path)
        except ImageError as error:
            raise PictureError(f"{path}: {error} – index again with --verify, or give --data_root") from error

    def pictures(self) -> Tensor:
        """All pictures as the network sees them but for the scale: uint8 (N, C, H, W). Raises MetadataError."""
        size, channels = self.preprocess.size_px, self.preprocess.channels
        if len(self) * channels * size * size > IN_MEMORY_MAX_BYTES:
            raise MetadataError(
                f"{len(self):,} pictures of {size} px are more than the {IN_MEMORY_MAX_BYTES / 2**30:.0f} GiB that are held "
                f"in memory – give a smaller --img_size, or --augment {'|'.join(sorted(AUGMENTATIONS))}"
            )
        pictures = np.empty((len(self), size, size, channels), np.uint8)
        for row in tqdm(range(len(self)), desc="reading", unit="face", leave=False, disable=None):
            pictures[row] = self.preprocess.resize(self.image(row))
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        image = self.image(row)
        if self.augmentation is None:
            tensor = torch.from_numpy(self.preprocess(image))
        else:
            tensor = self.augmentation(image, self.seed, int(self.epoch), row)
        return tensor, self.y_cls[row], self.y_reg[row], {key: shares[row] for key, shares in self.soft.items()}


def drawn_pictures(dataset: FERDataset, count: int) -> list[Tensor]:
    """Pictures of a dataset as input of a network, (C, H, W) each: `count` of them, or all where there are fewer, drawn
    without repetition and each time the same."""
    rows = np.random.default_rng(0).choice(len(dataset), size=min(count, len(dataset)), replace=False)
    return [dataset[int(row)][0] for row in rows]


def default_workers(device: torch.device) -> int:
    """Worker processes of a DataLoader: none on Windows (they hang there, says the report) and none for a CPU, whose
    cores are the network's; for a GPU one a core, at most 8."""
    if os.name == "nt" or device.type == "cpu":
        return 0
    return min(8, os.cpu_count() or 1)


def start_worker(_worker: int) -> None:
    """One OpenCV thread a worker: the workers are the parallelism."""
    cv2.setNumThreads(0)


def make_loader(
    dataset: FERDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    sampler: Sampler[int] | None = None,
) -> DataLoader:
    """A DataLoader over the dataset: in row order without a sampler (evaluation), else as the sampler says (training).

    A last training batch of one image is dropped, as BatchNorm has no variance to divide by there.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        drop_last=sampler is not None and len(dataset) % batch_size == 1,
        generator=torch.Generator(),  # it draws only seeds for workers, which must not move the numbers of the dropout
    )


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's random numbers."""
    return seed * 1_000_003 + epoch


class BatchLoader:
    """Training rows in batches from memory: all pictures lie on the device, and are augmented there, a batch at a time.

    A pass draws the order from `sampler` and what becomes of the pictures from (seed, epoch) of the dataset. `size_px` is
    their side, at first that of the dataset's Preprocess; smaller ones train faster. A last batch of one image is dropped,
    as in `make_loader`.
    """

    def __init__(self, dataset: FERDataset, *, batch_size: int, device: torch.device, sampler: Sampler[int]) -> None:
        assert dataset.batch_augmentation is not None
        self.dataset, self.batch_size, self.sampler = dataset, batch_size, sampler
        self.augmentation = dataset.batch_augmentation
        self.size_px = dataset.preprocess.size_px
        self.images = dataset.pictures().to(device)
        self.y_cls, self.y_reg = dataset.y_cls.to(device), dataset.y_reg.to(device)
        self.soft = {key: shares.to(device) for key, shares in dataset.soft.items()}
        self.generator = torch.Generator(device)
        shape = (1, dataset.preprocess.channels, 1, 1)
        self.mean = torch.tensor(dataset.preprocess.mean, device=device).reshape(shape)
        self.std = torch.tensor(dataset.preprocess.std, device=device).reshape(shape)

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]:
        self.generator.manual_seed(epoch_seed(self.dataset.seed, int(self.dataset.epoch)))
        order = torch.tensor(list(self.sampler), device=self.images.device)
        for rows in order.split(self.batch_size)[: len(self)]:
            pictures = self.images[rows]
            if self.size_px != pictures.shape[-1]:
                size = (self.size_px, self.size_px)
                pictures = functional.interpolate(pictures.float(), size, mode="bilinear", antialias=True)
            pictures = self.augmentation(pictures, self.generator)
            soft = {key: shares[rows] for key, shares in self.soft.items()}
            yield (pictures - self.mean) / self.std, self.y_cls[rows], self.y_reg[rows], soft


# --- contact sheet ------------------------------------------------------------------------------------------------------


def write_contact_sheet(dataset: FERDataset, out: Path, *, faces: int = 8, variants: int = 6, seed: int = 0) -> None:
    """A PNG with one row a face: the picture as stored, then `variants` augmentations of it, as the network gets them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = np.random.default_rng(seed).choice(len(dataset), size=min(faces, len(dataset)), replace=False)
    figure, axes = plt.subplots(
        len(chosen), variants + 1, figsize=(1.3 * (variants + 1), 1.3 * len(chosen) + 0.4), squeeze=False
    )
    mean = np.asarray(dataset.preprocess.mean)[:, None, None]
    std = np.asarray(dataset.preprocess.std)[:, None, None]
    for line, row in zip(axes, chosen, strict=True):
        line[0].imshow(dataset.image(int(row)), cmap="gray", vmin=0, vmax=255)
        line[0].set_title(dataset.rows["label"][row], fontsize=9)
        for variant, axis in enumerate(line[1:]):
            dataset.set_epoch(variant)
            if dataset.batch_augmentation is None:
                tensor = dataset[int(row)][0].numpy() * std + mean  # (C, H, W), back on the 0..1 scale
            else:
                picture = torch.tensor(dataset.preprocess.resize(dataset.image(int(row)))).permute(2, 0, 1)
                generator = torch.Generator().manual_seed(epoch_seed(seed, variant) + int(row))
                tensor = dataset.batch_augmentation(picture[None], generator)[0].numpy()
            axis.imshow(tensor.transpose(1, 2, 0).clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        for axis in line:
            axis.set_axis_off()
    figure.suptitle("left: as stored; right: as the network sees it", fontsize=10)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def build_parser() -> Parser:
    """The command line of the contact sheet."""
    parser = Parser(__doc__)
    parser.add_argument("--meta", default="metadata_train.parquet", help="parquet of make metadata (default: %(default)s)")
    parser.add_argument("--data_root", "--data-root", help="where the pictures are, if not where the parquet says")
    parser.add_argument(
        "--augment", choices=sorted(AUGMENTATIONS | BATCH_AUGMENTATIONS), default="report", help="default: %(default)s"
    )
    parser.add_argument("--img_size", "--img-size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--grey", action="store_true", help="as a one-channel network sees it")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/batch.png"), help="the PNG (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the contact sheet."""
    args = build_parser().parse_args(argv)
    if args.seed < 0:
        print("fer_transform.py: --seed must be at least 0", file=sys.stderr)
        return 2
    if args.img_size < SIZE_MIN_PX or args.out.suffix.lower() != ".png":
        print(f"fer_transform.py: give --img_size of at least {SIZE_MIN_PX} and an --out that ends in .png", file=sys.stderr)
        return 2
    preprocess = IMAGENET_224
    if args.grey:
        preprocess = Preprocess(size_px=args.img_size, channels=1, mean=(0.5,), std=(0.5,))
    elif args.img_size != preprocess.size_px:
        preprocess = Preprocess(args.img_size, 3, preprocess.mean, preprocess.std)
    try:
        dataset = FERDataset(
            args.meta, preprocess=preprocess, augment=args.augment, seed=args.seed, data_root=args.data_root
        )
        write_contact_sheet(dataset, args.out, seed=args.seed)
    except (MetadataError, OSError) as error:
        print(f"fer_transform.py: {line_of(error)}", file=sys.stderr)
        return 2
    print(f"{args.out}: {min(8, len(dataset))} of {len(dataset)} faces of {args.meta}, augmented as {args.augment}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
