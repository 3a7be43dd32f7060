"""Rows → tensors: labels by name, missing affect, the evaluation transform, and augmentations that are truly random."""

import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from faces import Preprocess, read_image

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler

import fer_transform
from fer_transform import (
    AUGMENTATIONS,
    BATCH_AUGMENTATIONS,
    IMAGENET_224,
    Augmentation,
    BatchAugmentation,
    BatchLoader,
    FERDataset,
    default_workers,
    make_loader,
    shares_among,
)
from labels import LABEL_SETS
from metadata_parallel import MetadataError, read_metadata

GREY_48 = Preprocess(48, 1, (0.5,), (0.5,))
COLOUR_40 = Preprocess(40, 3, IMAGENET_224.mean, IMAGENET_224.std)
CPU = torch.device("cpu")
NETWORKS = [GREY_48, COLOUR_40]


def write_parquet(source: Path, target: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """A copy of a metadata parquet with changed rows and the same metadata of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    changed = pa.Table.from_pandas(change(table.to_pandas()), schema=table.schema.remove_metadata(), preserve_index=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), target)
    return target


def without_affect(rows: pd.DataFrame) -> pd.DataFrame:
    """Valence missing in row 0, arousal in row 1, both in row 2."""
    rows.loc[[0, 2], "valence"] = math.nan
    rows.loc[[1, 2], "arousal"] = math.nan
    return rows


# Items


def test_items_of_picture_files(drawn: Path) -> None:
    dataset = FERDataset(drawn / "metadata_train.parquet", preprocess=COLOUR_40)
    rows, _ = read_metadata(drawn / "metadata_train.parquet")
    assert len(dataset) == len(rows) and dataset.left_out == 0 and dataset.labels is LABEL_SETS["affectnet8"]
    for row in range(0, len(rows), 7):
        image, y_cls, y_reg, _ = dataset[row]
        assert image.shape == (3, 40, 40) and image.dtype == torch.float32
        assert y_cls.shape == () and y_cls.dtype == torch.int64
        assert LABEL_SETS["affectnet8"].names[int(y_cls)] == rows["label"][row]
        assert y_reg.shape == (2,) and y_reg.dtype == torch.float32
        assert y_reg.tolist() == [np.float32(rows["valence"][row]), np.float32(rows["arousal"][row])]
        picture = read_image(drawn / "data" / rows["path"][row])
        assert np.array_equal(image.numpy(), COLOUR_40(picture))


def test_items_of_pixels(pixels: Path) -> None:
    stored = np.load(pixels / "metadata_images.npy")
    for split in ("train", "val", "test"):
        dataset = FERDataset(pixels / f"metadata_{split}.parquet", preprocess=GREY_48)
        rows, _ = read_metadata(pixels / f"metadata_{split}.parquet")
        for row in range(len(rows)):
            image, y_cls, y_reg, soft = dataset[row]
            assert LABEL_SETS["fer7"].names[int(y_cls)] == rows["label"][row]
            assert y_reg.isnan().all() and soft == {}
            np.testing.assert_allclose(image[0].numpy() * 127.5 + 127.5, stored[rows["index"][row]], atol=1e-3)
    assert isinstance(dataset.pixels, np.memmap)  # never read whole


def test_missing_affect_is_nan_and_can_be_dropped(drawn: Path) -> None:
    path = write_parquet(drawn / "metadata_val.parquet", drawn / "gaps.parquet", without_affect)
    dataset = FERDataset(path, preprocess=GREY_48)
    assert dataset.y_reg.isnan()[:4].tolist() == [[True, False], [False, True], [True, True], [False, False]]
    dropped = FERDataset(path, preprocess=GREY_48, drop_invalid_va=True)
    assert dropped.left_out == 3 and len(dropped) == len(dataset) - 3
    assert torch.equal(dropped.y_reg, dataset.y_reg[3:]) and torch.equal(dropped.y_cls, dataset.y_cls[3:])
    assert torch.equal(dropped[0][0], dataset[3][0])


def test_another_label_set_goes_by_name(pixels: Path) -> None:
    own = FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48)
    merged = FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48, labels=LABEL_SETS["fer4"])
    four = {"angry": "angry", "disgust": "angry", "fear": "sad", "happy": "happy", "sad": "sad"}
    four |= {"surprise": "neutral", "neutral": "neutral"}
    assert merged.left_out == 0
    expected = [four[LABEL_SETS["fer7"].names[index]] for index in own.y_cls.tolist()]
    assert [LABEL_SETS["fer4"].names[index] for index in merged.y_cls.tolist()] == expected
    assert set(expected) == {"angry", "sad", "happy", "neutral"}


def test_rows_of_a_class_that_the_network_lacks_are_left_out(drawn: Path) -> None:
    rows, _ = read_metadata(drawn / "metadata_train.parquet")
    contempt = int((rows["label"] == "contempt").sum())
    assert contempt > 0
    dataset = FERDataset(drawn / "metadata_train.parquet", preprocess=GREY_48, labels=LABEL_SETS["fer7"])
    assert dataset.left_out == contempt and len(dataset) == len(rows) - contempt
    kept = rows[rows["label"] != "contempt"]["label"].tolist()
    assert [LABEL_SETS["fer7"].names[index] for index in dataset.y_cls.tolist()] == kept
    assert dataset.paths == rows[rows["label"] != "contempt"]["path"].tolist()


def test_a_dataset_survives_the_way_into_a_spawned_worker(pixels: Path) -> None:
    dataset = FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48, augment="report", seed=3)
    dataset.set_epoch(5)
    sent = pickle.dumps(dataset)
    assert len(sent) < (pixels / "metadata_images.npy").stat().st_size / 2  # the pixels stay where they are
    copy = pickle.loads(sent)
    assert all(torch.equal(copy[row][0], dataset[row][0]) for row in range(4))


# What goes wrong


def message_of(call: Callable[[], object]) -> str:
    """The message of the MetadataError that a call raises, which must be one line."""
    with pytest.raises(MetadataError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_unusable_metadata(drawn: Path, pixels: Path, tmp_path: Path) -> None:
    assert "make metadata" in message_of(lambda: FERDataset(tmp_path / "metadata_train.parquet"))
    empty = write_parquet(
        drawn / "metadata_val.parquet", drawn / "none.parquet", lambda rows: rows[rows["label"] == "contempt"][:1]
    )
    assert "no usable row (of 1) for fer7" in message_of(lambda: FERDataset(empty, labels=LABEL_SETS["fer7"]))
    shutil.copy(pixels / "metadata_val.parquet", tmp_path)
    assert "metadata_images.npy not found beside" in message_of(
        lambda: FERDataset(tmp_path / "metadata_val.parquet", data_root=tmp_path)
    )
    whole = (pixels / "metadata_images.npy").read_bytes()
    for content in (b"", b"no array", whole[: len(whole) // 2]):
        (tmp_path / "metadata_images.npy").write_bytes(content)
        assert "is damaged" in message_of(lambda: FERDataset(tmp_path / "metadata_val.parquet"))
    np.save(tmp_path / "metadata_images.npy", np.load(pixels / "metadata_images.npy")[:2])
    assert "is not of" in message_of(lambda: FERDataset(tmp_path / "metadata_val.parquet"))
    root = message_of(lambda: FERDataset(drawn / "metadata_val.parquet", data_root=tmp_path / "elsewhere"))
    assert "--data_root" in root


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_picture_is_one_line(drawn: Path, tmp_path: Path, workers: int) -> None:
    dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=GREY_48, data_root=tmp_path)
    loader = make_loader(dataset, batch_size=4, workers=workers, device=CPU)
    message = message_of(lambda: list(loader))
    assert message == f"{tmp_path / dataset.paths[0]}: missing – index again with --verify, or give --data_root"


# The evaluation transform


@pytest.mark.parametrize("size", [(48, 48), (75, 75), (30, 64)])
@pytest.mark.parametrize("preprocess", [COLOUR_40, IMAGENET_224])
def test_evaluation_is_resize_normalize_to_tensor(size: tuple[int, int], preprocess: Preprocess) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    shrinks = max(size) > preprocess.size_px
    reference = A.Compose(
        [
            A.Resize(preprocess.size_px, preprocess.size_px, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
            A.Normalize(mean=preprocess.mean, std=preprocess.std, max_pixel_value=255.0),
            A.ToTensorV2(),
        ]
    )
    np.testing.assert_allclose(preprocess(image), reference(image=image)["image"].numpy(), atol=1e-5)


def test_evaluation_is_not_augmented(drawn: Path) -> None:
    dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=COLOUR_40)
    first = [dataset[row][0] for row in range(5)]
    dataset.set_epoch(9)
    assert all(torch.equal(dataset[row][0], first[row]) for row in range(5))


# Augmentation


@pytest.fixture(scope="module")
def face(drawn: Path) -> np.ndarray:
    """A drawn face, uint8 (48, 48, 3)."""
    return read_image(drawn / "data" / "images" / "0.jpg")


@pytest.mark.parametrize("preprocess", NETWORKS, ids=["grey", "colour"])
@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmented_pictures(face: np.ndarray, name: str, preprocess: Preprocess) -> None:
    augment = Augmentation(name, preprocess)
    plain = preprocess(face)
    seen = set()
    for row in range(30):
        tensor = augment(face, 1, 1, row)
        assert tensor.shape == plain.shape and tensor.dtype == torch.float32 and tensor.isfinite().all()
        low = [(0 - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
        high = [(1 - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
        for channel, smallest, largest in zip(tensor, low, high, strict=True):
            assert smallest - 1e-4 <= channel.min() and channel.max() <= largest + 1e-4
        seen.add(tensor.numpy().tobytes())
    assert len(seen) == 30
    # Mild: on average the picture stays closer to its face than to a flat grey.
    assert np.mean([np.corrcoef(augment(face, 2, 1, row).numpy().ravel(), plain.ravel())[0, 1] for row in range(40)]) > 0.5


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_grey_picture_is_augmented_for_both_kinds_of_network(name: str) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (48, 48), dtype=np.uint8)
    for preprocess in NETWORKS:
        assert Augmentation(name, preprocess)(grey, 0, 1, 2).shape == (preprocess.channels, *[preprocess.size_px] * 2)


def test_the_reports_augmentations_in_its_order() -> None:
    names = [type(transform).__name__ for transform in Augmentation("report", COLOUR_40).compose.transforms]
    assert names == [
        "RandomResizedCrop", "HorizontalFlip", "ColorJitter", "Affine", "CoarseDropout", "ISONoise", "OneOf", "CLAHE",
        "Normalize", "ToTensorV2",
    ]  # fmt: skip
    blurs = Augmentation("report", COLOUR_40).compose.transforms[6]
    assert [type(transform).__name__ for transform in blurs.transforms] == ["MedianBlur", "GaussianBlur"]
    grey = [type(transform).__name__ for transform in Augmentation("report", GREY_48).compose.transforms]
    assert grey == [*names[:8], "ToGray", *names[8:]]


def test_seed_epoch_and_row_decide(drawn: Path) -> None:
    def pictures(seed: int, epoch: int) -> list[torch.Tensor]:
        dataset = FERDataset(drawn / "metadata_train.parquet", preprocess=COLOUR_40, augment="report", seed=seed)
        dataset.set_epoch(epoch)
        return [dataset[row][0] for row in range(12)]

    first = pictures(1, 1)
    assert all(map(torch.equal, first, pictures(1, 1)))
    assert not any(map(torch.equal, first, pictures(1, 2)))
    assert not any(map(torch.equal, first, pictures(2, 1)))


def test_rows_of_one_picture_differ(drawn: Path) -> None:
    same = write_parquet(
        drawn / "metadata_val.parquet", drawn / "same.parquet", lambda rows: rows.iloc[[0] * 8].reset_index(drop=True)
    )
    dataset = FERDataset(same, preprocess=COLOUR_40, augment="report", seed=1)
    assert len({dataset[row][0].numpy().tobytes() for row in range(8)}) == 8


def test_any_number_of_workers_gives_the_same_pictures(drawn: Path) -> None:
    """Two epochs through one loader: workers that live on must see the new epoch."""

    def epochs(workers: int) -> list[torch.Tensor]:
        dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=GREY_48, augment="report", seed=5)
        loader = make_loader(dataset, batch_size=5, workers=workers, device=CPU, sampler=SequentialSampler(dataset))
        assert loader.persistent_workers == (workers > 0)
        found = []
        for epoch in (1, 2):
            dataset.set_epoch(epoch)
            found.append(torch.cat([images for images, *_ in loader]))
        return found

    alone = epochs(0)
    changed = (alone[0] != alone[1]).flatten(1).any(dim=1)
    assert changed.all()
    for workers in (1, 2):
        for expected, found in zip(alone, epochs(workers), strict=True):
            assert torch.equal(found, expected)


def draws(build: Callable[[], list[A.BasicTransform]], image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """400 augmentations of an image by an augmentation of these transforms, (400, H, W) of the first channel."""
    monkeypatch.setitem(AUGMENTATIONS, "probe", lambda size_px: build())
    augment = Augmentation("probe", Preprocess(16, 3, (0.0,) * 3, (1.0,) * 3))
    return np.stack([augment(image, 7, 1, row)[0].numpy() for row in range(400)])


def test_transforms_of_one_picture_are_not_tied_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flip must say nothing about brightness or a shift: Compose's own seeding applies all three or none."""
    image = np.full((16, 16, 3), 100, np.uint8)
    image[6:10, 2:5] = 200  # left of the centre and in the middle of the height

    def build() -> list[A.BasicTransform]:
        return [
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(brightness_limit=(0.2, 0.3), contrast_limit=(0, 0), p=0.5),
            A.Affine(translate_px={"x": (0, 0), "y": (2, 4)}, border_mode=cv2.BORDER_REPLICATE, p=0.5),
        ]

    pictures = draws(build, image, monkeypatch)
    flipped = pictures[:, :, :8].mean(axis=(1, 2)) < pictures[:, :, 8:].mean(axis=(1, 2))
    brightness = np.median(pictures, axis=(1, 2))
    rows = np.arange(16)
    weight = pictures.max(axis=2) - pictures.min(axis=2)  # (400, 16), where the patch is
    height = (weight * rows).sum(axis=1) / weight.sum(axis=1)
    assert 0.4 < flipped.mean() < 0.6
    assert brightness.std() > 0.05 and height.std() > 1
    table = np.corrcoef([flipped.astype(float), brightness, height])
    assert np.abs(table[np.triu_indices(3, 1)]).max() < 0.2  # four standard errors of 400 draws


def test_flips_of_neighbouring_rows_and_epochs_are_independent(face: np.ndarray) -> None:
    augment = Augmentation("lightcnn", GREY_48)
    ramp = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1))

    def flips(epoch: int) -> np.ndarray:
        images = np.stack([augment(ramp, 3, epoch, row)[0].numpy() for row in range(200)])
        return (images[:, 16:32, 14:20].mean(axis=(1, 2)) > images[:, 16:32, 28:34].mean(axis=(1, 2))).astype(float)

    first, second = flips(1), flips(2)
    assert 0.36 < first.mean() < 0.64
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.29  # four standard errors of 200
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.29


def test_light_cnn_crops_44_of_a_padded_48(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bright dot in the centre lands within ±6 px, the most that crops of 44 out of 56 px can move it, stretched 48/44."""
    image = np.zeros((48, 48), np.uint8)
    image[23:25, 23:25] = 255
    augment = Augmentation("lightcnn", Preprocess(48, 1, (0.0,), (1.0,)))
    places = []
    for row in range(300):
        picture = augment(image, 1, 1, row)[0].numpy()
        places.append([(picture.sum(axis=axis) * np.arange(48)).sum() / picture.sum() - 23.5 for axis in (0, 1)])
    reach = np.abs(places).max(axis=0)
    assert (reach > 5).all() and (reach < 6 * 48 / 44 + 1).all()
    assert np.abs(np.mean(places, axis=0)).max() < 1


def test_bgr_networks_are_augmented_alike_and_turned_round(face: np.ndarray) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    rgb = Augmentation("report", Preprocess(40, 3, mean, std))
    bgr = Augmentation("report", Preprocess(40, 3, mean[::-1], std[::-1], order="bgr"))
    for row in range(5):
        assert torch.allclose(bgr(face, 1, 1, row), rgb(face, 1, 1, row).flip(0), atol=1e-6)
    plain = Preprocess(40, 3, mean, std)(face)
    np.testing.assert_allclose(Preprocess(40, 3, mean[::-1], std[::-1], order="bgr")(face), plain[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "zoom", "turn_deg"), [("four_class", (1.0, 1 / 0.9), 10.0), ("lightcnn", (48 / 44, 48 / 44), 15.0)]
)
def test_how_far_pictures_are_zoomed_and_turned(name: str, zoom: tuple[float, float], turn_deg: float) -> None:
    """Two dots on the level through the centre, 20 px apart: their distance tells the zoom, their slope the turn."""
    image = np.zeros((48, 48), np.uint8)
    image[23:25, 13:15], image[23:25, 33:35] = 120, 240
    augment = Augmentation(name, Preprocess(48, 1, (0.0,), (1.0,)))
    zooms, turns, flips = [], [], 0
    for row in range(300):
        picture = augment(image, 1, 1, row)[0].numpy()
        halves = [(picture * (columns > 24)) for columns in (np.arange(48)[None, :], 48 - np.arange(48)[None, :])]
        ends = []
        for half in halves:
            ends.append([(half.sum(axis=axis) * np.arange(48)).sum() / half.sum() for axis in (0, 1)])
        (x_right, y_right), (x_left, y_left) = ends
        zooms.append(np.hypot(x_right - x_left, y_right - y_left) / 20)
        turns.append(np.degrees(np.arctan2(y_right - y_left, x_right - x_left)))
        flips += halves[1].sum() > halves[0].sum()
    assert (min(zooms), max(zooms)) == pytest.approx(zoom, abs=0.02)
    assert turn_deg - 2 < max(turns) < turn_deg + 1 and -turn_deg - 1 < min(turns) < 2 - turn_deg
    assert 110 < flips < 190


def test_two_phase_erases_a_part_of_half_the_pictures() -> None:
    image = np.full((48, 48, 3), 255, np.uint8)
    augment = Augmentation("two_phase", Preprocess(48, 3, (0.0,) * 3, (1.0,) * 3))
    erased = [float((augment(image, 1, 1, row) - 127 / 255).abs().lt(1e-3).float().mean()) for row in range(200)]
    hit = [share for share in erased if share > 0.01]
    assert 70 < len(hit) < 130 and max(hit) < 0.25


# Loaders


def test_loader_order_and_last_batch(drawn: Path) -> None:
    dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=GREY_48)
    rows = len(dataset)
    loader = make_loader(dataset, batch_size=rows - 1, workers=0, device=CPU)
    assert torch.equal(torch.cat([y_cls for _, y_cls, *_ in loader]), dataset.y_cls)  # nothing is dropped or moved
    training = make_loader(dataset, batch_size=rows - 1, workers=0, device=CPU, sampler=RandomSampler(dataset))
    assert [len(y_cls) for _, y_cls, *_ in training] == [rows - 1]  # a batch of one has no variance
    pairs = make_loader(dataset, batch_size=rows - 2, workers=0, device=CPU, sampler=RandomSampler(dataset))
    assert [len(y_cls) for _, y_cls, *_ in pairs] == [rows - 2, 2]
    assert not loader.pin_memory and make_loader(dataset, batch_size=4, workers=0, device=torch.device("cuda")).pin_memory


def test_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [default_workers(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [0, 6, 6]
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert default_workers(torch.device("cuda")) == 8
    monkeypatch.setattr(fer_transform.os, "name", "nt")
    assert default_workers(torch.device("cuda")) == 0


# The script


@pytest.mark.parametrize(
    "flags",
    [[], ["--grey", "--augment", "lightcnn", "--img-size", "48"], ["--grey", "--augment", "fernet", "--img-size", "48"]],
)
def test_contact_sheet(drawn: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "batch.png"
    arguments = ["--meta", str(drawn / "metadata_train.parquet"), "--img_size", "32", "--out", str(out), *flags]
    assert fer_transform.main(arguments) == 0
    image = read_image(out)
    assert image.shape[0] > 400 and image.shape[1] > 400 and image.std() > 20
    assert f"{out}: 8 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--meta", "no.parquet"], "no.parquet not found"),
        (["--data_root", "no/where"], "--data_root"),
        (["--img_size", "0"], "--img_size"),
        (["--out", "batch.xyz"], ".png"),
    ],
)
def test_contact_sheet_errors(drawn: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fer_transform.main(["--meta", str(drawn / "metadata_train.parquet"), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# Batches augmented on their device

STILL = BatchAugmentation(
    rotate_deg=0.0, scale=(1.0, 1.0), shift=0.0, brightness=0.0, contrast=0.0, erase=0.0, erase_area=(0.1, 0.1)
)


def augmented(strengths: BatchAugmentation, image: np.ndarray, count: int, seed: int = 0) -> Tensor:
    """`count` variants of one grey picture (H, W), (count, H, W) on the 0..1 scale."""
    batch = torch.from_numpy(image)[None, None].repeat(count, 1, 1, 1)
    return strengths(batch, torch.Generator().manual_seed(seed))[:, 0]


def smooth_picture() -> np.ndarray:
    """A picture without symmetries and without sharp edges."""
    rows, columns = np.mgrid[0:48, 0:48] / 48
    values = 0.5 + 0.3 * np.sin(5 * columns + 2 * rows) * np.cos(4 * rows) + 0.2 * columns * rows
    return (255 * values).clip(0, 255).astype(np.uint8)


def test_without_strengths_pictures_are_themselves_or_mirrored() -> None:
    image = smooth_picture()
    plain, mirrored = torch.from_numpy(image / 255.0).float(), torch.from_numpy(image[:, ::-1] / 255.0).float()
    mirrors = 0
    for variant in augmented(STILL, image, 400):
        is_mirrored = torch.allclose(variant, mirrored, atol=1e-5)
        assert is_mirrored or torch.allclose(variant, plain, atol=1e-5)
        mirrors += is_mirrored
    assert 160 < mirrors < 240


def test_the_affine_map_has_the_distribution_of_albumentations() -> None:
    """The mean and the spread of every pixel over many draws, against albumentations with the same strengths."""
    image = smooth_picture()
    strengths = replace(STILL, rotate_deg=20.0, scale=(0.8, 1.3), shift=0.1)
    ours = augmented(strengths, image, 4000)
    shift = {"x": (-0.1, 0.1), "y": (-0.1, 0.1)}
    affine = A.Affine(rotate=(-20, 20), scale=(0.8, 1.3), translate_percent=shift, border_mode=cv2.BORDER_REPLICATE, p=1.0)
    compose = A.Compose([A.HorizontalFlip(p=0.5), affine])
    compose.set_random_seed(1)
    theirs = torch.from_numpy(np.stack([compose(image=image)["image"] for _ in range(4000)]) / 255.0)
    assert (ours.mean(dim=0) - theirs.mean(dim=0)).abs().max() < 0.012
    assert (ours.std(dim=0) - theirs.std(dim=0)).abs().max() < 0.012
    assert (ours.mean(dim=0) - torch.from_numpy(image / 255.0)).abs().max() > 0.1  # the test can tell


def test_a_share_of_the_pictures_is_not_warped() -> None:
    image = smooth_picture()
    strengths = replace(STILL, rotate_deg=20.0, scale=(0.8, 1.3), shift=0.1, unwarped=0.25)
    variants = augmented(strengths, image, 2000)
    plain = torch.from_numpy(image / 255.0).float()
    far = torch.stack([(variants - face).abs().amax(dim=(1, 2)) for face in (plain, plain.flip(-1))]).amin(dim=0)
    assert 0.21 < (far < 1e-5).float().mean() < 0.29


def test_light_changes_about_the_mean_of_the_picture() -> None:
    image = np.full((48, 48), 100, np.uint8)
    image[:24] = 150  # mean 125
    variants = augmented(replace(STILL, brightness=0.1, contrast=0.2), image, 500)
    upper, lower = 255 * variants[:, 10, 10], 255 * variants[:, 40, 10]
    contrast, lift = (upper - lower) / 50, (upper + lower) / 2 - 125
    assert 0.8 <= contrast.min() < 0.82 and 1.18 < contrast.max() <= 1.2001
    assert -25.51 <= lift.min() < -24 and 24 < lift.max() <= 25.51
    assert abs(np.corrcoef(contrast.numpy(), lift.numpy())[0, 1]) < 0.15  # drawn apart


def test_erased_rectangles_have_the_asked_area_and_frequency() -> None:
    variants = augmented(replace(STILL, erase=0.4, erase_area=(0.05, 0.2)), np.full((48, 48), 255, np.uint8), 2000)
    grey = variants == 0.5
    assert ((variants > 0.9999) | grey).all()
    areas = grey.float().mean(dim=(1, 2))
    hit = areas[areas > 0]
    assert 0.36 < len(hit) / 2000 < 0.44 and 0.03 < hit.min() < 0.06 and 0.18 < hit.max() < 0.22
    for mask in grey[areas > 0][:50]:
        assert mask.sum() == mask.any(dim=0).sum() * mask.any(dim=1).sum()  # one rectangle
    assert len({int(mask.any(dim=1).int().argmax()) for mask in grey[areas > 0]}) > 25  # anywhere


def test_a_batch_loader_gives_every_row_with_its_labels(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCH_AUGMENTATIONS, "still", STILL)
    preprocess = Preprocess(48, 1, (0.4,), (0.3,))
    dataset = FERDataset(pixels / "metadata_train.parquet", preprocess=preprocess, augment="still")
    plain = FERDataset(pixels / "metadata_train.parquet", preprocess=preprocess)
    rows = list(range(len(dataset)))[::-1]
    loader = BatchLoader(dataset, batch_size=41, device=CPU, sampler=rows)  # type: ignore[arg-type]
    assert len(dataset) == 42 and len(loader) == 1  # a batch of one is dropped
    ((images, y_cls, y_reg, soft),) = list(loader)
    assert images.shape == (41, 1, 48, 48) and images.dtype == torch.float32
    assert y_reg.shape == (41, 2) and soft == {}
    for place, row in enumerate(rows[:41]):
        picture, label, _, _ = plain[row]
        assert y_cls[place] == label
        assert any(torch.allclose(images[place], either, atol=1e-5) for either in (picture, picture.flip(2)))


def test_a_batch_loader_depends_on_seed_and_epoch_alone(pixels: Path) -> None:
    def first_batch(seed: int, epoch: int) -> Tensor:
        dataset = FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48, augment="fernet", seed=seed)
        dataset.set_epoch(epoch)
        sampler = SequentialSampler(dataset)
        return next(iter(BatchLoader(dataset, batch_size=8, device=CPU, sampler=sampler)))[0]

    assert torch.equal(first_batch(1, 2), first_batch(1, 2))
    for other in (first_batch(1, 3), first_batch(2, 2)):
        assert not torch.allclose(first_batch(1, 2), other)


def test_smaller_pictures_show_the_same(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCH_AUGMENTATIONS, "still", STILL)
    dataset = FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48, augment="still")
    loader = BatchLoader(dataset, batch_size=8, device=CPU, sampler=SequentialSampler(dataset))
    loader.size_px = 24
    images = next(iter(loader))[0]
    assert images.shape == (8, 1, 24, 24)
    small = [cv2.resize(dataset.image(row), (24, 24), interpolation=cv2.INTER_AREA) / 255.0 for row in range(8)]
    for row in range(8):
        seen = 0.5 + 0.5 * images[row, 0].numpy()
        far = [min(np.abs(seen - other).mean(), np.abs(seen - other[:, ::-1]).mean()) for other in small]
        assert int(np.argmin(far)) == row and far[row] < 0.08


def test_too_many_pictures_for_memory_are_refused(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fer_transform, "IN_MEMORY_MAX_BYTES", 42 * 48 * 48 - 1)
    dataset = FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48, augment="fernet")
    with pytest.raises(MetadataError, match="--augment"):
        dataset.pictures()


# FER+ votes


def test_votes_come_with_the_rows_and_make_the_labels_of_ferplus8(voted: Path) -> None:
    seven = FERDataset(voted / "metadata_train.parquet", preprocess=GREY_48)
    assert len(seven) == 42 and seven.labels.name == "fer7"
    columns = seven.rows.filter(like="votes_").to_numpy()
    for row in range(len(seven)):
        shares = seven[row][3]["votes"]
        if columns[row][9] == 10:  # no face
            assert shares.isnan().all()
        elif columns[row].max() == 5:
            assert shares[:2].tolist() == [0.5, 0.5] and shares.sum() == 1
        else:
            assert LABEL_SETS["ferplus8"].names[int(shares.argmax())] == seven.rows["label"][row] and shares.max() == 1
    eight = FERDataset(voted / "metadata_train.parquet", preprocess=GREY_48, labels=LABEL_SETS["ferplus8"])
    clear = columns[:, :8].max(axis=1) == 10
    assert eight.left_out == (~clear).sum() > 0 and len(eight) == clear.sum()
    names = [LABEL_SETS["ferplus8"].names[index] for index in eight.y_cls]
    assert names == eight.rows["label"].tolist() == seven.rows["label"][clear].tolist()
    assert torch.equal(eight.soft["votes"], seven.soft["votes"][clear])


def test_a_teacher_speaks_of_the_rows_that_it_has_seen_by_name(voted: Path, tmp_path: Path) -> None:
    rows, _ = read_metadata(voted / "metadata_train.parquet")
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(7), size=len(rows))
    table = rows[["path", "index", "label"]].assign(
        **{f"p_{name}": shares[:, at] for at, name in enumerate(LABEL_SETS["fer7"].names)}
    )
    table.iloc[::-1].iloc[5:].to_parquet(tmp_path / "said.parquet")  # another order, and without the last five
    dataset = FERDataset(
        voted / "metadata_train.parquet", preprocess=GREY_48, augment="fernet", teacher=tmp_path / "said.parquet"
    )
    said = dataset.soft["teacher"]
    np.testing.assert_allclose(said[:-5].numpy(), shares[:-5], rtol=1e-5)
    assert said[-5:].isnan().all()
    loader = BatchLoader(dataset, batch_size=8, device=CPU, sampler=list(range(len(dataset))))  # type: ignore[arg-type]
    soft = next(iter(loader))[3]
    assert torch.equal(soft["teacher"], said[:8]) and soft["votes"].shape == (8, 8)
    moved = table.assign(label=np.roll(table["label"], 1))
    for other, wrong in (("test", table), ("train", table.drop(columns="p_fear")), ("train", moved)):
        wrong.to_parquet(tmp_path / "wrong.parquet")
        with pytest.raises(MetadataError, match=r"metadata_train\.parquet|of another index"):
            FERDataset(voted / f"metadata_{other}.parquet", preprocess=GREY_48, teacher=tmp_path / "wrong.parquet")


def test_the_winners_of_the_votes(voted: Path, pixels: Path) -> None:
    seven = FERDataset(voted / "metadata_train.parquet", preprocess=GREY_48)
    eight = FERDataset(voted / "metadata_train.parquet", preprocess=GREY_48, labels=LABEL_SETS["ferplus8"])
    won = seven.majority()
    assert won is not None and won[won >= 0].tolist() == eight.y_cls.tolist() and (won < 0).sum() == eight.left_out
    assert FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48).majority() is None


def test_votes_teach_by_their_shares_among_the_labels(voted: Path, pixels: Path) -> None:
    votes = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.0, 0.0, 0.0, 0.4], [0, 0, 0, 0, 0, 0, 0, 1.0], [math.nan] * 8])
    shares = shares_among(votes, LABEL_SETS["ferplus8"], LABEL_SETS["fer7"])  # contempt is none of its classes
    expected = {"neutral": 1 / 6, "happy": 2 / 6, "sad": 3 / 6}
    assert shares[0].tolist() == pytest.approx([expected.get(name, 0.0) for name in LABEL_SETS["fer7"].names])
    assert shares[1:].isnan().all()
    merged = shares_among(votes, LABEL_SETS["ferplus8"], LABEL_SETS["fer4"])
    assert merged[0].tolist() == pytest.approx([expected.get(name, 0.0) for name in LABEL_SETS["fer4"].names])
    dataset = FERDataset(voted / "metadata_train.parquet", preprocess=GREY_48, teacher="votes")
    shares = shares_among(dataset.soft["votes"], LABEL_SETS["ferplus8"], dataset.labels)
    torch.testing.assert_close(dataset.soft["teacher"], shares, equal_nan=True)
    with pytest.raises(MetadataError, match="index with --ferplus"):
        FERDataset(pixels / "metadata_train.parquet", preprocess=GREY_48, teacher="votes")


def test_a_teacher_of_picture_files(drawn: Path, tmp_path: Path) -> None:
    rows, _ = read_metadata(drawn / "metadata_train.parquet")
    names = LABEL_SETS["affectnet8"].names
    shares = np.random.default_rng(0).dirichlet(np.ones(8), size=len(rows))
    table = rows[["path", "index", "label"]].assign(**{f"p_{name}": shares[:, at] for at, name in enumerate(names)})
    table.to_parquet(tmp_path / "said.parquet")
    flags = {"preprocess": GREY_48, "teacher": tmp_path / "said.parquet"}
    dataset = FERDataset(drawn / "metadata_train.parquet", **flags)  # type: ignore[arg-type]
    np.testing.assert_allclose(dataset.soft["teacher"].numpy(), shares, rtol=1e-5)
    with pytest.raises(MetadataError, match="holds none of the training rows"):
        FERDataset(drawn / "metadata_val.parquet", **flags)  # type: ignore[arg-type]
