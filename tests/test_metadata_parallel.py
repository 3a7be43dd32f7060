"""metadata_parallel.py and layouts.py: every layout, every kind of bad file, the split, FER+ and the words to the user."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import layouts
from labels import LABEL_SETS
from metadata_parallel import (
    MetadataError,
    build_metadata,
    main,
    read_metadata,
    relative_root,
    resolve_data_root,
    stratified_split,
)

FER7 = LABEL_SETS["fer7"].names
AFFECTNET8 = LABEL_SETS["affectnet8"].names
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()
COLUMNS = ["path", "index", "label", "valence", "arousal", "landmarks", "split", "source"]
FERPLUS_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"

# The counts that the data set's authors give: rows by split and class, in the order of fer7.
FER2013_COUNTS = {
    "train": [3995, 436, 4097, 7215, 4830, 3171, 4965],
    "val": [467, 56, 496, 895, 653, 415, 607],
    "test": [491, 55, 528, 879, 594, 416, 626],
}

needs_fer2013 = pytest.mark.skipif("FER2013" not in os.environ, reason="FER2013 is not set: path of fer2013.parquet")
needs_ferplus = pytest.mark.skipif("FERPLUS" not in os.environ, reason="FERPLUS is not set: path of fer2013new.csv")


def write_face(folder, name, number=None, valence=None, arousal=None, landmarks=None, *, image=JPEG):
    """A face in images/ and annotations/, its annotations as AffectNet's release has them: 0-d text."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    if image is not None:
        (folder / "images" / name).write_bytes(image)
    stem = str(folder / "annotations" / Path(name).stem)
    for kind, value in (("exp", number), ("val", valence), ("aro", arousal)):
        if value is not None:
            np.save(f"{stem}_{kind}.npy", value if isinstance(value, np.ndarray) else np.array(str(value)))
    if landmarks is not None:
        np.save(f"{stem}_lnd.npy", landmarks)


def write_class_folders(folder, names, *, images=5):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(images):
            (folder / name / f"{i}.png").write_bytes(PNG)


def write_csv(path, rows, header="emotion,pixels,Usage"):
    """Rows (emotion, usage, pixels as text or None for a good image)."""
    text = " ".join(map(str, PIXELS.ravel()))
    fields = {"emotion": 0, "Usage": 1, "pixels": 2}
    order = [fields[name.strip()] for name in header.split(",")]
    filled = [(emotion, usage, text if pixels is None else pixels) for emotion, usage, pixels in rows]
    lines = [",".join(str(row[i]) for i in order) for row in filled]
    path.write_text("\n".join([header, *lines]) + "\n")


def write_parquet(path, rows):
    columns = {"row": [], "emotion": [], "usage": [], "png": []}
    for i, (emotion, usage, png) in enumerate(rows):
        for name, value in zip(columns, (i, emotion, usage, png), strict=True):
            columns[name].append(value)
    types = {"row": pa.int32(), "emotion": pa.int8(), "usage": pa.string(), "png": pa.binary()}
    pq.write_table(pa.table({name: pa.array(values, types[name]) for name, values in columns.items()}), path)


def build(data, out, **settings):
    """Rows of metadata_all, the file's own metadata, and the reasons by path of what was left out."""
    build_metadata(data, out, **settings)
    frame, info = read_metadata(out / "metadata_all.parquet")
    with (out / "metadata_skipped.csv").open(newline="", encoding="utf-8") as file:
        header, *skipped = csv.reader(file)
    assert header == ["path", "reason"]
    assert len(skipped) == len(dict(skipped))
    return frame, info, dict(skipped)


def split_counts(frame):
    return Counter(frame["split"])


def error_of(capsys, *argv):
    """The one line on stderr of a command that must fail with status 2."""
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


# ---- images/ and annotations/ ---------------------------------------------------------------------------------------


def test_annotations_layout(tmp_path):
    data = tmp_path / "data"
    for i in range(40):
        write_face(data, f"{i}.jpg", i % 8, (i - 20) / 20, -0.25, np.arange(136.0) if i != 3 else None)
    write_face(data, "upper.JPG", 7)
    frame, info, skipped = build(data, tmp_path)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 41
    assert skipped == {}
    rows = frame.set_index("path")
    assert list(rows.index) == sorted(rows.index)
    assert rows.loc["images/9.jpg", "label"] == "happy"
    assert rows.loc["images/9.jpg", "valence"] == np.float32(-0.55)
    assert rows.loc["images/9.jpg", "landmarks"] == "annotations/9_lnd.npy"
    assert pd.isna(rows.loc["images/3.jpg", "landmarks"])
    assert rows.loc["images/upper.JPG", "label"] == "contempt"
    assert np.isnan(rows.loc["images/upper.JPG", ["valence", "arousal"]].astype(float)).all()
    assert frame["index"].isna().all()
    assert set(frame["source"]) == {"images"}
    assert split_counts(frame) == {"train": 33, "val": 8}  # one of each class' five or six
    assert Counter(frame.loc[frame["split"] == "val", "label"]) == dict.fromkeys(AFFECTNET8, 1)
    assert info == {
        "format": 1,
        "label_set": "affectnet8",
        "layout": "annotations",
        "data_root": "data",
        "images": None,
        "seed": 42,
        "val_fraction": 0.2,
        "split_id": info["split_id"],
    }
    assert len(info["split_id"]) == 16
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "metadata_all.parquet")}
    assert types == {
        "path": "string",
        "index": "int32",
        "label": "string",
        "valence": "float",
        "arousal": "float",
        "landmarks": "string",
        "split": "string",
        "source": "string",
    }


def test_affectnet_release_keeps_its_split(tmp_path):
    for i in range(6):
        write_face(tmp_path / "data" / "train_set", f"{i}.jpg", i)
    for i in range(3):
        write_face(tmp_path / "data" / "val_set", f"{i}.jpg", 7, 0.5, -0.5, np.zeros(136))
    frame, info, _ = build(tmp_path / "data", tmp_path)
    assert info["layout"] == "affectnet"
    assert split_counts(frame) == {"train": 6, "val": 3}
    assert set(frame.loc[frame["split"] == "val", "path"]) == {f"val_set/images/{i}.jpg" for i in range(3)}
    assert set(frame.loc[frame["split"] == "val", "landmarks"]) == {f"val_set/annotations/{i}_lnd.npy" for i in range(3)}
    assert list(frame["source"]) == ["train_set"] * 6 + ["val_set"] * 3


@pytest.mark.parametrize(
    "value",
    [
        np.array("3"),
        np.array(b"3"),
        np.array(["3"]),
        np.array(3),
        np.array([3], np.uint8),
        np.array([[3]], np.int64),
        np.array(3.0),
        np.array(3, ">i4"),
        np.array(3, ">f8"),
        np.array("3", ">U2"),
        np.array(3, np.float16),
    ],
    ids=lambda value: f"{value.dtype.str}{value.shape}",
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)], ids=str)
def test_a_class_is_read_from_any_npy(tmp_path, value, version):
    with (tmp_path / "0_exp.npy").open("wb") as file:
        np.lib.format.write_array(file, value, version=version)
    values, faults = layouts.read_npy_values([str(tmp_path / "0_exp.npy")])
    assert values.tolist() == [3.0]
    assert faults == {}


def test_npy_headers_of_any_length_and_landmarks_of_any_kind(tmp_path):
    old = b"\x93NUMPY\x01\x00F\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (), }".ljust(69) + b"\n"
    assert len(old) == 80  # as numpy padded before 1.14
    (tmp_path / "old.npy").write_bytes(old + np.float64(0.25).tobytes())
    values, faults = layouts.read_npy_values([str(tmp_path / "old.npy")])
    assert (values.tolist(), faults) == ([0.25], {})
    landmarks = [np.arange(136.0), np.arange(136.0).reshape(68, 2), np.asfortranarray(np.arange(136.0).reshape(68, 2))]
    landmarks += [np.arange(136, dtype=np.int16), np.arange(136.0).astype("U20")]
    for i, array in enumerate(landmarks):
        np.save(tmp_path / f"{i}.npy", array)
    values, faults = layouts.read_npy_values([str(tmp_path / f"{i}.npy") for i in range(len(landmarks))], 136)
    assert (values.tolist(), faults) == ([0.0] * len(landmarks), {})


def test_npy_reader_agrees_with_numpy_on_random_files(tmp_path):
    random = np.random.default_rng(1)
    expected = []
    for i in range(300):
        value = random.choice([random.uniform(-1, 1), round(random.uniform(-1, 1), 3), -2.0, 0.0])
        kind = random.choice(["<U16", "<f4", "<f8", ">f8", "<f2", "S24"])
        array = np.array(value).astype(kind) if kind[1] != "U" else np.array(f"{value:.6g}")
        np.save(tmp_path / f"{i}.npy", array if random.random() < 0.5 else array.reshape(1))
        expected.append(float(np.load(tmp_path / f"{i}.npy").reshape(-1)[0]))
    values, faults = layouts.read_npy_values([str(tmp_path / f"{i}.npy") for i in range(300)])
    assert faults == {}
    np.testing.assert_array_equal(values, expected)


BAD_NUMBERS = {
    "pickled": np.array([{"a": 1}], dtype=object),
    "wrong dtype": np.array(1 + 2j),
    "wrong shape": np.array([1.0, 2.0]),
    "not a number": np.array("happy"),
}


BAD_FILES = ("empty", "truncated", "truncated header", "not an npy file", "damaged header")


@pytest.mark.parametrize("kind", ["exp", "val", "aro", "lnd"])
@pytest.mark.parametrize("fault", [*BAD_NUMBERS, *BAD_FILES])
def test_bad_annotation_is_left_out_under_its_reason(tmp_path, kind, fault):
    data = tmp_path / "data"
    for i in range(4):
        write_face(data, f"{i}.jpg", 1, 0.5, 0.5, np.zeros(136))
    bad = data / "annotations" / f"2_{kind}.npy"
    good = bad.read_bytes()
    if fault in BAD_NUMBERS:
        value = BAD_NUMBERS[fault]
        np.save(bad, np.repeat(value, 136) if kind == "lnd" and fault != "wrong shape" else value, allow_pickle=True)
    else:
        bad.write_bytes(
            {
                "empty": b"",
                "truncated": good[:-1],
                "truncated header": good[:50],
                "not an npy file": b"3\n",
                "damaged header": good[:10] + b"{'descr': ((((((" + good[26:],
            }[fault]
        )
    frame, _, skipped = build(data, tmp_path)
    reason = {"truncated header": "truncated", "damaged header": "not an npy file"}.get(fault, fault)
    assert skipped == {"images/2.jpg": f"_{kind}.npy: {reason}"}
    assert list(frame["path"]) == [f"images/{i}.jpg" for i in (0, 1, 3)]


def test_nothing_is_ever_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    write_face(tmp_path / "data", "0.jpg", 1)
    write_face(tmp_path / "data", "1.jpg")
    np.save(tmp_path / "data" / "annotations" / "1_exp.npy", np.array([Trap()]), allow_pickle=True)
    _, _, skipped = build(tmp_path / "data", tmp_path)
    assert skipped == {"images/1.jpg": "_exp.npy: pickled"}
    assert not (tmp_path / "sprung").exists()


def test_classes_that_are_none(tmp_path):
    data = tmp_path / "data"
    write_face(data, "good.jpg", 7)
    for name, number in {"a": 8, "b": 9, "c": 10, "d": 11, "e": -1, "f": 2.5, "g": np.nan, "h": np.inf}.items():
        write_face(data, f"{name}.jpg", np.array(number), -2, -2)
    write_face(data, "i.jpg")  # an image without a class
    write_face(data, "j.jpg", 3, image=None)  # a class without an image
    (data / "images" / "notes.txt").write_text("x")
    frame, _, skipped = build(data, tmp_path)
    assert list(frame["path"]) == ["images/good.jpg"]
    assert skipped == {
        "images/a.jpg": "class 8 (none)",
        "images/b.jpg": "class 9 (uncertain)",
        "images/c.jpg": "class 10 (no face)",
        "images/d.jpg": "class out of range",
        "images/e.jpg": "class out of range",
        "images/f.jpg": "not a class number",
        "images/g.jpg": "not a class number",
        "images/h.jpg": "not a class number",
        "images/i.jpg": "_exp.npy: missing",
        "annotations/j_exp.npy": "annotation without an image",
        "images/notes.txt": "not an image by its name",
    }


def test_valence_and_arousal(tmp_path):
    data = tmp_path / "data"
    values = {"0": 0.5, "1": -2, "2": "-2.0", "3": np.nan, "4": 1.00001, "5": -1, "6": 1.01, "7": np.inf, "8": -2.5}
    for name, value in values.items():
        write_face(data, f"{name}.jpg", 1, value, 0)
    frame, _, skipped = build(data, tmp_path)
    np.testing.assert_array_equal(frame["valence"], np.array([0.5, np.nan, np.nan, np.nan, 1, -1], np.float32))
    assert (frame["arousal"] == 0).all()
    assert skipped == {f"images/{name}.jpg": "valence outside [-1, 1]" for name in ("6", "7", "8")}
    assert pq.read_table(tmp_path / "metadata_all.parquet")["valence"].null_count == 0  # missing is NaN, not null


def test_bad_images_and_verify(tmp_path):
    data = tmp_path / "data"
    start = PNG.index(b"IDAT") + 4
    bad = {
        "empty.png": (b"", "image: empty"),
        "text.png": (b"<html>", "image: not an image"),
        "cut.png": (PNG[:-30], "image: truncated"),
        "cut.jpg": (JPEG[: len(JPEG) // 2], "image: truncated"),
    }
    scrambled = PNG[:start] + b"\x00" * 200 + PNG[start + 200 :]
    write_class_folders(data, ["happy", "sad"])
    for name, (content, _) in bad.items():
        (data / "happy" / name).write_bytes(content)
    (data / "happy" / "scrambled.png").write_bytes(scrambled)
    (data / "sad" / "link.png").symlink_to(tmp_path / "nowhere.png")
    reasons = {f"happy/{name}": reason for name, (_, reason) in bad.items()} | {"sad/link.png": "image: missing"}
    frame, _, skipped = build(data, tmp_path)
    assert skipped == reasons
    assert len(frame) == 11
    frame, _, skipped = build(data, tmp_path, verify=True)
    assert skipped == reasons | {"happy/scrambled.png": "image: cannot be decoded"}
    assert len(frame) == 10


# ---- class folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "val", "test"), {"train": 10, "val": 10, "test": 10}),
        (("Training", "Validation", "TESTING"), {"train": 10, "val": 10, "test": 10}),
        (("Training", "PublicTest", "PrivateTest"), {"train": 10, "val": 10, "test": 10}),
        (("train_set", "valid", "test_set"), {"train": 10, "val": 10, "test": 10}),
        (("train", "test"), {"train": 8, "val": 2, "test": 10}),
        (("train", "val"), {"train": 10, "val": 10}),
        (("train",), {"train": 8, "val": 2}),
        (("",), {"train": 8, "val": 2}),
        (("test",), {"test": 10}),
    ],
    ids=str,
)
def test_class_folders_with_any_splits(tmp_path, splits, expected):
    data = tmp_path / "data"
    for split in splits:
        write_class_folders(data / split, ["Anger", "HAPPINESS"])
    frame, info, _ = build(data, tmp_path)
    assert info["label_set"] == "fer7"
    assert split_counts(frame) == expected
    assert Counter(frame["label"]) == {"angry": 5 * len(splits), "happy": 5 * len(splits)}
    assert (tmp_path / "metadata_test.parquet").exists() == ("test" in expected)
    for split in ("train", "val"):
        assert len(read_metadata(tmp_path / f"metadata_{split}.parquet")[0]) == expected.get(split, 0)


def test_label_set_follows_the_names_or_the_request(tmp_path):
    data = tmp_path / "data"
    write_class_folders(data, ["Contempt", "Disgust", "Fear", "Happy", "Neutral", "unsure"], images=2)
    (data / "Happy" / "person 1").mkdir()
    (data / "Happy" / "person 1" / "ü.png").write_bytes(PNG)
    frame, info, skipped = build(data, tmp_path)
    assert info["label_set"] == "affectnet8"
    assert Counter(frame["label"]) == {"contempt": 2, "disgust": 2, "fear": 2, "happy": 3, "neutral": 2}
    assert "Happy/person 1/ü.png" in set(frame["path"])
    assert skipped == {f"unsure/{i}.png": "folder unsure is no class" for i in range(2)}
    frame, info, skipped = build(data, tmp_path, label_set="fer4")
    assert info["label_set"] == "fer4"
    assert Counter(frame["label"]) == {"angry": 2, "sad": 2, "happy": 3, "neutral": 2}  # disgust → angry, fear → sad
    assert skipped["Contempt/0.png"] == "contempt is not in fer4"
    frame, info, skipped = build(data, tmp_path, label_set="affectnet7")
    assert "contempt" not in set(frame["label"])
    assert skipped["Contempt/0.png"] == "contempt is not in affectnet7"


def test_numbered_folders_need_a_label_set(tmp_path, capsys):
    data = tmp_path / "data"
    write_class_folders(data / "train", "01236789")
    message = error_of(capsys, "--data", data, "--out", tmp_path)
    assert "--label_set fer7 (0 angry, 1 disgust" in message
    assert "--label_set affectnet8 (0 neutral" in message
    frame, _, skipped = build(data, tmp_path, label_set="fer7")
    assert Counter(frame["label"]) == dict.fromkeys(["angry", "disgust", "fear", "happy", "neutral"], 5)
    assert set(skipped.values()) == {"class out of range"}
    frame, _, skipped = build(data, tmp_path, label_set="affectnet8")
    assert Counter(frame["label"]) == dict.fromkeys(["neutral", "happy", "sad", "surprise", "angry", "contempt"], 5)
    assert Counter(skipped.values()) == {"class 8 (none)": 5, "class 9 (uncertain)": 5}
    write_class_folders(tmp_path / "rafdb", "1234567")
    assert "numbered from 1" in error_of(capsys, "--data", tmp_path / "rafdb", "--label_set", "fer7", "--out", tmp_path)


def test_test_data_kept_elsewhere(tmp_path, capsys):
    data, inside, outside = tmp_path / "data", tmp_path / "data" / "held out", tmp_path / "elsewhere"
    write_class_folders(data / "train", ["happy", "sad"])
    write_class_folders(inside, ["happy"], images=3)
    write_class_folders(outside, ["contempt", "sad"], images=2)
    frame, _, _ = build(data, tmp_path, test_data=inside)
    assert split_counts(frame) == {"train": 8, "val": 2, "test": 3}
    assert set(frame.loc[frame["split"] == "test", "path"]) == {f"held out/happy/{i}.png" for i in range(3)}
    frame, info, skipped = build(data, tmp_path, test_data=outside)
    test = frame[frame["split"] == "test"]
    assert list(test["path"]) == [f"{outside.as_posix()}/sad/{i}.png" for i in range(2)]
    assert list(test["source"]) == ["elsewhere"] * 2
    root = resolve_data_root(tmp_path / "metadata_all.parquet", info)
    assert all((root / path).is_file() for path in frame["path"])
    assert set(skipped.values()) == {"contempt is not in fer7"}
    assert "happy/0.png is in" in error_of(
        capsys, "--data", data / "train", "--out", tmp_path, "--test_data", data / "train"
    )
    write_csv(tmp_path / "fer2013.csv", [(3, "Training", None)] * 5)
    for flags in (["--test_data", outside], ["--verify"], ["--workers", "2"]):
        error = error_of(capsys, "--data", tmp_path / "fer2013.csv", "--out", tmp_path, *flags)
        assert f"{flags[0]} is for folders of pictures" in error
    write_class_folders(data / "test", ["happy"])
    assert "has a test split of its own" in error_of(capsys, "--data", data, "--out", tmp_path, "--test-data", outside)
    assert "no class folders" in error_of(capsys, "--data", data, "--out", tmp_path, "--test_data", data)


# ---- FER2013 and FER+ -----------------------------------------------------------------------------------------------

USAGES = ["Training"] * 5 + ["PublicTest"] * 2 + ["PrivateTest"]


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion, Usage, pixels"])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_csv(tmp_path, header, given):
    name = "fer2013.csv" if header.startswith("emotion,pixels") else "icml_face_data.csv"
    data = tmp_path / "data"
    data.mkdir()
    write_csv(data / name, [(i % 7, usage, None) for i, usage in enumerate(USAGES)], header)
    frame, info, skipped = build(data if given == "folder" else data / name, tmp_path)
    assert (info["layout"], info["label_set"], info["images"]) == ("csv", "fer7", "metadata_images.npy")
    assert info["data_root"] == "data"
    assert split_counts(frame) == {"train": 5, "val": 2, "test": 1}
    assert list(frame["label"]) == [FER7[i % 7] for i in range(8)]
    assert list(frame["index"]) == list(range(8))
    assert frame["path"].isna().all()
    assert frame["valence"].isna().all()
    assert set(frame["source"]) == {name}
    assert skipped == {}
    images = np.load(tmp_path / "metadata_images.npy", mmap_mode="r")
    assert isinstance(images, np.memmap)
    assert (images.shape, images.dtype) == ((8, 48, 48), np.uint8)
    assert (images == PIXELS).all()


def test_csv_without_usage_is_split_and_small_classes_survive(tmp_path):
    write_csv(tmp_path / "train.csv", [(3, "", None)] * 10 + [(4, "", None)] * 2 + [(5, "", None)], "emotion,pixels")
    frame, _, _ = build(tmp_path / "train.csv", tmp_path)
    counts = Counter(zip(frame["label"], frame["split"], strict=True))
    expected = {("happy", "train"): 8, ("happy", "val"): 2, ("sad", "train"): 1, ("sad", "val"): 1, ("surprise", "train"): 1}
    assert counts == expected


def test_bad_rows_of_a_csv(tmp_path):
    good = " ".join(["7"] * 2304)
    rows = [
        (0, "Training", good),
        (0, "Training", good[:-2]),  # 2303
        (0, "Training", good[:-1] + "256"),
        (0, "Training", good[:-1] + "-1"),
        (0, "Training", good[:-1] + "x"),
        (0, "Training", "1 2 3 4"),  # square, of another size
        (0, "Training", ""),
        (7, "Training", good),
        ("", "Training", good),
        (1, "Holiday", good),
        ("3.0", "Training", good),  # of pandas
        ("3.5", "Training", good),
        (6, "PublicTest", good),
    ]
    write_csv(tmp_path / "fer2013.csv", rows)
    with (tmp_path / "fer2013.csv").open("a") as file:
        file.write("\n3\n\n")
    frame, _, skipped = build(tmp_path / "fer2013.csv", tmp_path)
    assert list(frame["label"]) == ["angry", "happy", "neutral"]
    assert list(frame["index"]) == [0, 1, 2]
    assert len(np.load(tmp_path / "metadata_images.npy")) == 3
    assert skipped == {
        **{f"fer2013.csv:{row}": "pixels cannot be read" for row in (1, 2, 3, 4, 6)},
        "fer2013.csv:5": "wrong number of pixels",
        "fer2013.csv:7": "class out of range",
        "fer2013.csv:8": "class out of range",
        "fer2013.csv:9": "unknown Usage",
        "fer2013.csv:11": "class out of range",
        "fer2013.csv:13": "too few columns",
    }
    with (tmp_path / "fer2013.csv").open("a") as file:
        file.write(f'3,"{good},Training\n3,{good},Training\n')  # holds all that comes after it
    with pytest.raises(MetadataError, match="the quotation mark of row 15 is not closed"):
        build(tmp_path / "fer2013.csv", tmp_path)


def test_parquet(tmp_path):
    scrambled = PNG[:60] + b"\x00" * 100 + PNG[160:]
    rows = [(i, "Training", PNG) for i in range(4)] + [(5, "PrivateTest", PNG)]
    rows += [(1, "Training", b""), (1, "Training", PNG[:-20]), (1, "Training", scrambled), (9, "Training", PNG)]
    write_parquet(tmp_path / "fer2013.parquet", rows)
    frame, info, skipped = build(tmp_path, tmp_path / "out")
    assert info["layout"] == "parquet"
    assert info["data_root"] == ".."
    assert list(frame["label"]) == ["angry", "disgust", "fear", "happy", "surprise"]
    assert split_counts(frame) == {"train": 4, "test": 1}  # classes of one row each: none to spare for val
    assert (np.load(tmp_path / "out" / "metadata_images.npy") == PIXELS).all()
    assert skipped == {
        "fer2013.parquet:5": "image: empty",
        "fer2013.parquet:6": "image: truncated",
        "fer2013.parquet:7": "image: cannot be decoded",
        "fer2013.parquet:8": "class out of range",
    }


def test_odd_columns_of_a_parquet(tmp_path, capsys):
    path = tmp_path / "fer2013.parquet"
    usage = ["Training"] * 3
    for emotions in ([3.0, None, 4.0], ["3", "sad", "4"]):
        pd.DataFrame({"emotion": emotions, "usage": usage, "png": [PNG] * 3}).to_parquet(path)
        frame, _, skipped = build(path, tmp_path)
        assert list(frame["label"]) == ["happy", "sad"]
        assert skipped == {"fer2013.parquet:1": "class out of range"}
    for pngs in ([{"bytes": PNG}] * 3, ["text"] * 3):
        pd.DataFrame({"emotion": [1, 2, 3], "usage": usage, "png": pngs}).to_parquet(path)
        assert "not the bytes of PNG files" in error_of(capsys, "--data", path, "--out", tmp_path)


# usage, votes, and the winner by hand: votes of one are dropped, the rest must give one class more than half.
FERPLUS_ROWS = [
    ("Training", [4, 0, 0, 1, 3, 2, 0, 0, 0, 0], None),  # 4 of 4+3+2
    ("Training", [6, 0, 1, 1, 0, 0, 0, 0, 2, 0], "neutral"),  # 6 of 6+2
    ("Training", [0, 5, 5, 0, 0, 0, 0, 0, 0, 0], None),  # exactly half
    ("Training", [1, 1, 1, 1, 2, 1, 1, 1, 1, 0], "angry"),  # 2 of 2
    ("Training", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None),  # nothing is left
    ("PublicTest", [0, 0, 0, 0, 0, 0, 0, 6, 2, 2], "contempt"),
    ("PublicTest", [0, 2, 0, 0, 0, 0, 0, 0, 8, 0], "unknown"),
    ("PrivateTest", [0, 0, 0, 0, 0, 0, 0, 0, 0, 10], "nf"),
    ("PrivateTest", [0, 0, 0, 4, 0, 0, 3, 0, 0, 0], "sad"),
]


def write_ferplus(path, rows):
    lines = [f"{usage},fer{i:07d}.png,{','.join(map(str, votes))}" for i, (usage, votes, _) in enumerate(rows)]
    path.write_text("\n".join([FERPLUS_HEADER, *lines]) + "\n")


def test_ferplus_majority_by_hand():
    winners = layouts.ferplus_majority(np.array([votes for _, votes, _ in FERPLUS_ROWS], np.uint8))
    names = [layouts.FERPLUS_VOTES[winner] if winner >= 0 else None for winner in winners]
    assert names == [winner for *_, winner in FERPLUS_ROWS]


def test_ferplus_distribution_by_hand():
    shares = layouts.ferplus_distribution(np.array([votes for _, votes, _ in FERPLUS_ROWS], np.uint8))
    assert shares.shape == (9, 8) and shares.dtype == np.float32
    expected = [
        {"neutral": 4 / 9, "angry": 3 / 9, "disgust": 2 / 9},  # no majority, but votes
        {"neutral": 1.0},  # the two for unknown are no expression
        {"happy": 0.5, "surprise": 0.5},
        {"angry": 1.0},
        None,  # nothing is left
        {"contempt": 1.0},
        None,  # won by unknown
        None,  # won by nf
        {"sad": 4 / 7, "fear": 3 / 7},
    ]
    for row, by_name in zip(shares, expected, strict=True):
        if by_name is None:
            assert np.isnan(row).all()
        else:
            found = dict(zip(layouts.FERPLUS_VOTES[:8], row.tolist(), strict=True))
            assert {name: share for name, share in found.items() if share} == pytest.approx(by_name)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_ferplus_joins_by_row(tmp_path, form):
    if form == "csv":
        data = tmp_path / "fer2013.csv"
        rows = [(3, usage, "1 2 3" if i == 1 else None) for i, (usage, *_) in enumerate(FERPLUS_ROWS)]  # row 1 is broken
        write_csv(data, rows)
    else:
        data = tmp_path / "fer2013.parquet"
        write_parquet(data, [(3, usage, b"" if i == 1 else PNG) for i, (usage, *_) in enumerate(FERPLUS_ROWS)])
    write_ferplus(tmp_path / "fer2013new.csv", FERPLUS_ROWS)
    frame, info, skipped = build(data, tmp_path, ferplus=tmp_path / "fer2013new.csv")
    assert info["label_set"] == "fer7"
    assert list(frame.columns) == [*COLUMNS, *(f"votes_{name}" for name in layouts.FERPLUS_VOTES)]
    assert len(frame) == 8
    assert set(frame["label"]) == {"happy"}
    kept = [votes for i, (_, votes, _) in enumerate(FERPLUS_ROWS) if i != 1]
    assert frame.filter(like="votes_").to_numpy().tolist() == kept
    assert frame["votes_nf"].dtype == np.uint8
    assert list(skipped) == [f"{data.name}:1"]
    frame, info, skipped = build(data, tmp_path, ferplus=tmp_path / "fer2013new.csv", label_set="ferplus8")
    assert info["label_set"] == "ferplus8"
    assert list(frame["label"]) == ["angry", "contempt", "sad"]
    assert list(frame["split"]) == ["train", "val", "test"]
    assert list(frame["index"]) == [2, 4, 7]  # of the eight images that can be read
    assert {path.split(":")[1]: reason for path, reason in skipped.items() if not path.endswith(":1")} == {
        "0": "FER+: no majority",
        "2": "FER+: no majority",
        "4": "FER+: no majority",
        "6": "FER+: majority is unknown",
        "7": "FER+: majority is nf",
    }


def test_ferplus_of_another_data_set_is_refused(tmp_path, capsys):
    votes = tmp_path / "fer2013new.csv"
    write_csv(tmp_path / "fer2013.csv", [(3, usage, None) for usage, *_ in FERPLUS_ROWS])
    command = ("--data", tmp_path / "fer2013.csv", "--out", tmp_path, "--ferplus", votes)
    write_ferplus(votes, FERPLUS_ROWS[:-1])
    assert "has 8 rows, fer2013.csv has more" in error_of(capsys, *command)
    write_ferplus(votes, [*FERPLUS_ROWS, FERPLUS_ROWS[0]])
    assert "has 10 rows, fer2013.csv has only 9" in error_of(capsys, *command)
    write_ferplus(votes, FERPLUS_ROWS[::-1])
    assert "row 0: usage PrivateTest, but Training" in error_of(capsys, *command)
    for odd in ("-1,0", "300,0", "x,0", "", '"' + 200_000 * "1"):
        votes.write_text(f"{FERPLUS_HEADER}\n\nTraining,fer0.png,{odd}\n")
        assert ": not the votes of ten taggers" in error_of(capsys, *command)
    votes.write_bytes(b"\xe9\x00,b\n1,2\n")
    assert "has no column usage, neutral" in error_of(capsys, *command)
    votes.write_text("a,b\n1,2\n")
    assert "has no column usage, neutral" in error_of(capsys, *command)
    assert "nowhere.csv not found" in error_of(capsys, *command[:-1], tmp_path / "nowhere.csv")
    assert "add: --ferplus fer2013new.csv" in error_of(capsys, *command[:-2], "--label_set", "ferplus8")
    write_ferplus(votes, FERPLUS_ROWS)
    write_class_folders(tmp_path / "folders", ["happy"])
    message = error_of(capsys, "--data", tmp_path / "folders", "--out", tmp_path, "--ferplus", votes)
    assert "joins by row" in message
    assert not list(tmp_path.glob("metadata_*"))


# ---- splitting ------------------------------------------------------------------------------------------------------


def test_stratified_split_shares():
    random = np.random.default_rng(3)
    classes = np.repeat([0, 1, 2, 3, 4], [100, 33, 3, 2, 1])
    random.shuffle(classes)
    in_val = stratified_split(classes, 0.2, seed=42)
    assert [int(in_val[classes == i].sum()) for i in range(5)] == [20, 7, 1, 1, 0]  # by hand: 20, 6.6, 0.6, 0.4, one row
    assert (in_val == stratified_split(classes, 0.2, seed=42)).all()
    assert (in_val != stratified_split(classes, 0.2, seed=43)).any()


def test_split_id_tells_splits_apart(tmp_path):
    data = tmp_path / "data"
    write_class_folders(data, ["happy", "sad"], images=10)
    _, first, _ = build(data, tmp_path)
    _, again, _ = build(data, tmp_path)
    _, other, _ = build(data, tmp_path, seed=1)
    assert first == again
    assert first["split_id"] != other["split_id"]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_same_bytes_for_any_number_of_workers(tmp_path):
    data = tmp_path / "data"
    for i in range(1200):  # three chunks
        write_face(data, f"{i}.jpg", i % 9, None if i % 5 else 0.5, image=b"" if i % 100 == 0 else JPEG)
    outs = [tmp_path / f"out{workers}" for workers in (1, 2, 3)]
    for workers, out in enumerate(outs, start=1):
        assert main(["--data", str(data), "--out", str(out), "--workers", str(workers)]) == 0
    names = sorted(path.name for path in outs[0].iterdir())
    assert names == ["metadata_all.parquet", "metadata_skipped.csv", "metadata_train.parquet", "metadata_val.parquet"]
    for out in outs[1:]:
        assert sorted(path.name for path in out.iterdir()) == names
        assert all((out / name).read_bytes() == (outs[0] / name).read_bytes() for name in names)
    with (outs[0] / "metadata_skipped.csv").open(newline="") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    assert reasons == {"image: empty": 12, "class 8 (none)": 132}  # of 133 with class 8, row 800 is empty, too


def test_spawned_workers_read_the_same(tmp_path):
    for i in range(3):
        write_face(tmp_path, f"{i}.jpg", i)
    part = layouts.recognise(tmp_path).parts[0]
    tasks = [(part, [f"{i}.jpg"], False) for i in range(3)]
    chunks = list(layouts._read_in_processes(tasks, 2, "spawn"))
    assert [chunk.classes.tolist() for chunk in chunks] == [[0], [1], [2]]


def test_source_is_not_written_to(tmp_path):
    data = tmp_path / "data"
    write_class_folders(data / "train", ["happy", "sad"])
    before = {path: path.stat().st_mtime_ns for path in [data, *data.rglob("*")]}
    assert main(["--data", str(data), "--out", str(tmp_path / "out")]) == 0
    assert {path: path.stat().st_mtime_ns for path in [data, *data.rglob("*")]} == before


def test_files_of_an_earlier_run_are_removed_and_errors_leave_them(tmp_path, capsys):
    write_csv(tmp_path / "fer2013.csv", [(3, usage, None) for usage in USAGES])
    out = tmp_path / "out"
    assert main(["--data", str(tmp_path), "--out", str(out)]) == 0
    kept = sorted(path.name for path in out.iterdir())
    assert {"metadata_images.npy", "metadata_test.parquet"} < set(kept)
    capsys.readouterr()
    assert "not found" in error_of(capsys, "--data", tmp_path / "nowhere", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == kept
    write_class_folders(tmp_path / "folders", ["happy", "sad"])
    assert main(["--data", str(tmp_path / "folders"), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "metadata_all.parquet",
        "metadata_skipped.csv",
        "metadata_train.parquet",
        "metadata_val.parquet",
    ]
    assert (out / "metadata_skipped.csv").read_text() == "path,reason\n"


def test_data_root_is_relative_where_it_can_be(tmp_path):
    assert relative_root(tmp_path / "data", tmp_path) == "data"
    assert relative_root(tmp_path, tmp_path) == "."
    assert relative_root(tmp_path / "a" / "b", tmp_path / "c") == "../a/b"
    assert relative_root(Path("/usr/lib"), tmp_path) == Path("/usr/lib").resolve().as_posix()
    (tmp_path / "link").symlink_to("/usr/lib")
    assert relative_root(tmp_path / "link", tmp_path) == "link"


def test_read_metadata_and_data_root(tmp_path, capsys):
    write_class_folders(tmp_path / "data", ["happy", "sad"])
    build_metadata(tmp_path / "data", tmp_path)
    frame, info = read_metadata(tmp_path / "metadata_train.parquet")
    assert len(frame) == 8
    assert frame["index"].dtype == "Int32"
    assert resolve_data_root(tmp_path / "metadata_train.parquet", info) == tmp_path / "data"
    assert resolve_data_root(tmp_path / "metadata_train.parquet", info, tmp_path) == tmp_path
    with pytest.raises(MetadataError, match="--data_root DIR"):
        resolve_data_root(tmp_path / "metadata_train.parquet", info, tmp_path / "nowhere")
    with pytest.raises(MetadataError, match=r"metadata_test\.parquet not found in .* – run: make metadata DATA="):
        read_metadata(tmp_path / "metadata_test.parquet")
    frame.to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(MetadataError, match="was not written by metadata_parallel"):
        read_metadata(tmp_path / "foreign.parquet")
    table = pa.table({"path": ["a"]}).replace_schema_metadata({b"fer": json.dumps({"format": 1}).encode()})
    pq.write_table(table, tmp_path / "narrow.parquet")
    with pytest.raises(MetadataError, match="lacks index, label"):
        read_metadata(tmp_path / "narrow.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(MetadataError, match="cannot be read as parquet"):
        read_metadata(tmp_path / "broken.parquet")


# ---- words ----------------------------------------------------------------------------------------------------------


def test_report_names_everything(tmp_path, capsys):
    data = tmp_path / "data"
    write_class_folders(data / "train", ["happy", "sad"], images=10)
    write_class_folders(data / "extra", ["happy"], images=1)
    (data / "train" / "sad" / "bad.png").write_bytes(b"")
    assert main(["--data", str(data), "--out", str(tmp_path), "--val-fraction", "0.3", "--label-set", "fer4"]) == 0
    out, _ = capsys.readouterr()
    _, info = read_metadata(tmp_path / "metadata_all.parquet")
    lines = out.splitlines()
    for words in (
        "layout     folders: class folders under train/",
        "not read   extra/",
        "data root  data",
        "label set  fer4: angry sad happy neutral",
        f"split_id   {info['split_id']}",
        "val        made from train: stratified, 0.3, seed 42",
        "left out: 1, listed in metadata_skipped.csv",
        f"next: python train.py --train_meta {tmp_path}/metadata_train.parquet --val_meta {tmp_path}/metadata_val.parquet",
    ):
        assert words in lines
    assert ["train", "0", "7", "7", "0", "14"] in [line.split() for line in lines]
    assert ["val", "0", "3", "3", "0", "6"] in [line.split() for line in lines]
    assert ["1", "image:", "empty"] in [line.split() for line in lines]


def test_unknown_folders_are_explained(tmp_path, capsys):
    data = tmp_path / "data"
    assert "--data DIR" in error_of(capsys, "--data", data)
    data.mkdir()
    assert "found nothing: it is empty" in error_of(capsys, "--data", data, "--out", tmp_path)
    (data / "fer2013.zip").write_bytes(b"PK")
    assert "unpack the archive first" in error_of(capsys, "--data", data, "--out", tmp_path)
    write_class_folders(data / "archive" / "train", ["happy"])
    message = error_of(capsys, "--data", data, "--out", tmp_path)
    assert "looked for images/ with annotations/" in message
    assert "found archive/, fer2013.zip" in message
    assert f"try --data {data.as_posix()}/archive (make metadata DATA={data.as_posix()}/archive)" in message
    assert "looked for fer2013.csv" in error_of(capsys, "--data", data, "--out", tmp_path, "--layout", "csv")
    (data / "faces.txt").write_text("x")
    assert "is not a data folder" in error_of(capsys, "--data", data / "faces.txt", "--out", tmp_path)
    (data / "other.csv").write_text("a,b\n1,2\n")
    message = error_of(capsys, "--data", data / "other.csv", "--out", tmp_path)
    assert "has no columns emotion and pixels; its columns are a, b" in message


def test_several_layouts_ask_for_a_choice(tmp_path, capsys):
    data = tmp_path / "data"
    write_class_folders(data / "train", ["happy"])
    write_csv(data / "fer2013.csv", [(3, usage, None) for usage in USAGES])
    message = error_of(capsys, "--data", data, "--out", tmp_path)
    assert "class folders under train/ and fer2013.csv" in message
    assert "--layout folders" in message
    assert build(data, tmp_path, layout="csv")[1]["layout"] == "csv"
    assert build(data, tmp_path, layout="folders")[1]["layout"] == "folders"
    write_csv(data / "icml_face_data.csv", [(3, "Training", None)])
    assert f"--data {data / 'fer2013.csv'}" in error_of(capsys, "--data", data, "--out", tmp_path, "--layout", "csv")


def test_nothing_usable_is_an_error(tmp_path, capsys):
    data = tmp_path / "data"
    write_face(data, "0.jpg")
    write_face(data, "1.jpg", 9)
    message = error_of(capsys, "--data", data, "--out", tmp_path)
    assert "nothing usable in" in message
    assert "1  _exp.npy: missing; 1  class 9 (uncertain)" in message
    assert not list(tmp_path.glob("metadata_*"))


@pytest.mark.parametrize("words", ["--val_fraction 1.0", "--val-fraction 0.0", "--workers 0", "--workers 999", "--seed -1"])
def test_values_out_of_range(tmp_path, capsys, words):
    write_class_folders(tmp_path / "data", ["happy"])
    message = error_of(capsys, "--data", tmp_path / "data", "--out", tmp_path, *words.split())
    assert message.startswith(f"metadata_parallel.py: {words.replace('val-', 'val_')}: give")


def test_data_is_the_default_folder(tmp_path, monkeypatch):
    write_class_folders(tmp_path, ["happy"])
    monkeypatch.chdir(tmp_path)
    assert main(["--out", "out"]) == 0
    assert read_metadata("out/metadata_all.parquet")[1]["data_root"] == ".."
    write_class_folders(tmp_path / "data", ["sad"])
    assert main([]) == 0
    frame, info = read_metadata("metadata_all.parquet")
    assert set(frame["label"]) == {"sad"}
    assert info["data_root"] == "data"
    assert resolve_data_root("metadata_all.parquet", info) == Path("data")


def test_inspect(tmp_path, capsys):
    data = tmp_path / "data"
    for i in range(10):
        write_face(data, f"{i}.jpg", 1, -2 if i < 3 else 0.5, -0.5)
    build_metadata(data, tmp_path)
    assert main(["--inspect", str(tmp_path / "metadata_all.parquet")]) == 0
    out, _ = capsys.readouterr()
    assert "10 rows" in out
    assert "  label_set    affectnet8" in out
    assert ["train", "0", "8", *["0"] * 6, "8"] in [line.split() for line in out.splitlines()]
    assert "valence: 0.5000 to 0.5000; 3 missing (NaN), 0 × -2, 0 outside [-1, 1]" in out
    # A file of the documents' own script: class numbers, the sentinel still in it.
    foreign = pd.DataFrame({"label": [0, 0, 7], "valence": [-2.0, 0.5, 1.5], "arousal": [np.nan, -2.0, -2.0]})
    foreign.to_parquet(tmp_path / "foreign.parquet")
    assert main(["--inspect", str(tmp_path / "foreign.parquet")]) == 0
    out, _ = capsys.readouterr()
    assert "none of its own" in out
    assert ["?", "2", "1", "3"] in [line.split() for line in out.splitlines()]
    assert "valence: 0.5000 to 1.5000; 0 missing (NaN), 1 × -2, 1 outside [-1, 1]" in out
    assert "arousal: no values; 1 missing (NaN), 2 × -2, 0 outside [-1, 1]" in out
    assert "not found" in error_of(capsys, "--inspect", tmp_path / "nowhere.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    assert "has no column label" in error_of(capsys, "--inspect", tmp_path / "a.parquet")
    pd.DataFrame({"label": ["sad"], "valence": ["much"]}).to_parquet(tmp_path / "a.parquet")
    assert main(["--inspect", str(tmp_path / "a.parquet")]) == 0
    assert "valence: string, not numbers" in capsys.readouterr().out.replace("large_string", "string")
    pd.DataFrame({"label": [[1]]}).to_parquet(tmp_path / "a.parquet")
    assert "neither names nor numbers" in error_of(capsys, "--inspect", tmp_path / "a.parquet")
    assert "--verify does nothing beside --inspect" in error_of(capsys, "--inspect", tmp_path / "a.parquet", "--verify")


# ---- the real data --------------------------------------------------------------------------------------------------


def counts_by_split(frame, names):
    counts = Counter(zip(frame["split"], frame["label"], strict=True))
    return {split: [counts[split, name] for name in names] for split in ("train", "val", "test")}


@needs_fer2013
def test_real_fer2013(tmp_path):
    frame, _, skipped = build(Path(os.environ["FER2013"]), tmp_path)
    assert counts_by_split(frame, FER7) == FER2013_COUNTS
    assert skipped == {}
    images = np.load(tmp_path / "metadata_images.npy", mmap_mode="r")
    assert images.shape == (35887, 48, 48)
    train = images[frame.loc[frame["split"] == "train", "index"].to_numpy()] / np.float32(255)
    assert train.mean(dtype=np.float64) == pytest.approx(0.50774, abs=5e-6)
    assert train.std(dtype=np.float64) == pytest.approx(0.25501, abs=5e-6)


@needs_fer2013
@needs_ferplus
def test_real_ferplus_majority(tmp_path):
    frame, _, skipped = build(
        Path(os.environ["FER2013"]), tmp_path, ferplus=Path(os.environ["FERPLUS"]), label_set="ferplus8"
    )
    assert split_counts(frame) == {"train": 25060, "val": 3199, "test": 3153}
    assert len(frame) + len(skipped) == 35887
    assert np.load(tmp_path / "metadata_images.npy", mmap_mode="r").shape == (35887, 48, 48)
