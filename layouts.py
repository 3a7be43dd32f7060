"""The layouts facial-expression data comes in: which one a folder has, and the faces it holds, read one chunk at a time.

`metadata_parallel.py` makes the metadata from what is read here. Only numpy and OpenCV are imported, so that a worker
process starts quickly wherever processes are spawned (Windows, macOS).

    python -c "import layouts; print(layouts.recognise('data').what)"
"""

import csv
import io
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from faces import IMAGE_EXTENSIONS, TAIL_BYTES, bytes_fault, image_fault

import cv2
import numpy as np

from labels import LABEL_SETS, canonical

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validset", "validationset", "dev", "publictest"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "privatetest"), "test"),
}
LAYOUTS = {
    "annotations": "images/ with annotations/ (N_exp.npy, optionally N_val, N_aro, N_lnd)",
    "affectnet": "train_set/ and val_set/, each with images/ and annotations/",
    "folders": "class folders (angry, disgust, … or numbers), also under train/ val/ test/",
    "csv": "fer2013.csv or icml_face_data.csv",
    "parquet": "fer2013.parquet (row, emotion, usage, png)",
}
PIXEL_FILES = {"fer2013.csv": "csv", "icml_face_data.csv": "csv", "fer2013.parquet": "parquet"}

CHUNK_ROWS = 500  # faces handed to a worker at a time
ROWS_PER_WORKER = {"fork": 2_000, "spawn": 75_000, "verify": 4_000}  # a process is worth starting for so many faces
WORKERS_MAX = 32  # Windows cannot wait for more than 61 processes
READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)
USUAL_HEADER = b"\x01\x00v\x00"  # version 1.0 and 118 bytes of header text, 128 bytes before the values in all
NPY_BYTES_MAX = 16384  # so much of an annotation is read: 136 landmarks as float64 are 1216 bytes, as long text 11,000
ITEM_BYTES_MAX = 256  # a number written as text has at most 64 characters
LANDMARK_VALUES = 136  # 68 points, x and y
NUMBER_MAX = 10  # a class folder's number; a larger one (a year, an id) is no class folder
AFFECT_TOLERANCE = 1e-4  # valence and arousal may pass ±1 by so much (single precision, rounding) and are clipped
AFFECT_SENTINEL = -2.0  # AffectNet writes this where valence and arousal are missing
AFFECTNET_OTHER = {8: "class 8 (none)", 9: "class 9 (uncertain)", 10: "class 10 (no face)"}
FERPLUS_VOTES = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt", "unknown", "nf")


class MetadataError(Exception):
    """Data or metadata that cannot be used; the message is one line that says what is wrong and what to type next."""


class FaceFault(Exception):
    """Why one face is left out, in a few constant words, so that faults can be counted."""


@dataclass(frozen=True)
class Part:
    """A folder of images of one split: with annotation files of their own, or all of one class."""

    split: str
    source: str  # the folder's name as it stands in the metadata
    folder: str  # absolute, with a separator at the end, as `prefix` and `annotations` have
    prefix: str  # what stands before an image's name in the metadata: the folder relative to the data root, POSIX
    annotations: str | None = None
    annotations_prefix: str = ""
    label: str | None = None
    fault: str | None = None  # why no image of this folder can be used


@dataclass(frozen=True)
class Layout:
    """A recognised layout: folders of images (`parts`) or one file of pixels (`pixels`)."""

    name: str  # a key of LAYOUTS
    root: Path  # paths of the metadata are relative to this folder
    what: str  # for people: what was found
    parts: tuple[Part, ...] = ()
    pixels: Path | None = None
    unread: tuple[str, ...] = ()  # folders beside the recognised ones, which are not read


class FaceChunk(NamedTuple):
    """What was read of some images of one part; the arrays are as long as `names`."""

    part: Part
    names: list[str]
    classes: np.ndarray  # int8, AffectNet's number; 0 without annotations
    affect: np.ndarray  # float32 (N, 2), valence and arousal, NaN where missing
    has_landmarks: np.ndarray  # bool
    faults: dict[int, str]  # position → why this face is left out


class PixelRow(NamedTuple):
    """One row of a FER2013 file: `image` is (H, W) uint8, or None where `fault` says why the row is left out."""

    row: int  # counted from 0 over all rows of the file, as FER+ does
    emotion: int  # FER2013's class number, -1 where it has none
    usage: str | None
    image: np.ndarray | None
    fault: str | None


# ---- recognising a layout -------------------------------------------------------------------------------------------


def recognise(data: str | os.PathLike[str], *, layout: str = "auto", label_set: str = "auto") -> Layout:
    """The layout of a data folder, or of a file of pixels. `label_set` says what numbered class folders mean.

    Raises MetadataError where nothing is recognised, where several layouts are and `layout` is "auto", and where class
    folders are numbers and `label_set` is "auto".
    """
    data = Path(data)
    if data.is_file():
        kind = {".csv": "csv", ".parquet": "parquet"}.get(data.suffix.lower())
        if kind is None or layout not in ("auto", kind):
            raise MetadataError(f"{data} is not a data folder, nor a fer2013.csv, icml_face_data.csv or fer2013.parquet")
        return _pixel_layout(data, kind)
    if not data.is_dir():
        raise MetadataError(f"{data} not found – say where the data is: --data DIR (make metadata DATA=DIR)")
    found = [one for one in _layouts_in(data, label_set) if layout in ("auto", one.name)]
    if not found:
        raise MetadataError(_nothing_recognised(data, layout))
    if len(found) > 1:
        if len({one.name for one in found}) == 1:
            choice = f"choose a file: --data {found[0].pixels}"
        else:
            choice = f"choose one: --layout {found[0].name}"
        raise MetadataError(f"{data} holds {' and '.join(one.what for one in found)} – {choice}")
    return found[0]


def class_folder_test(folder: str | os.PathLike[str], root: Path, label_set: str) -> tuple[Part, ...]:
    """The class folders of a test set that is kept away from the other data.

    Its paths are relative to `root` where the folder stands under it, else absolute. Raises MetadataError where the
    folder holds no class folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MetadataError(f"--test_data {folder}: no such folder")
    parts = _class_parts(folder, root=root, split="test", label_set=label_set)
    if not parts:
        raise MetadataError(f"--test_data {folder} holds no class folders (angry, disgust, …); found {_contents(folder)}")
    return tuple(parts)


def _layouts_in(data: Path, label_set: str) -> list[Layout]:
    """Every layout that a folder has."""
    folders = _subfolders(data)
    found = []
    if flat := _annotated_part(data, data, split="train", source="images"):
        found.append(Layout("annotations", data, "images/ with annotations/", (flat,)))
    by_split = sorted((SPLITS.index(split), folder) for folder in folders if (split := _split_of(folder.name)))
    release = [_annotated_part(folder, data, split=SPLITS[i], source=folder.name) for i, folder in by_split]
    if parts := tuple(part for part in release if part):
        names = " ".join(f"{part.source}/" for part in parts)
        found.append(Layout("affectnet", data, f"{names} with images/ and annotations/", parts))
    if folder_layout := _folder_layout(data, folders, by_split, label_set):
        found.append(folder_layout)
    files = sorted(path for path in data.iterdir() if path.name.lower() in PIXEL_FILES and path.is_file())
    found.extend(_pixel_layout(path, PIXEL_FILES[path.name.lower()]) for path in files)
    return found


def _folder_layout(data: Path, folders: list[Path], by_split: list[tuple[int, Path]], label_set: str) -> Layout | None:
    """Class folders under split folders, else directly under the data folder."""
    parts: list[Part] = []
    used = []
    for i, folder in by_split:
        if of_split := _class_parts(folder, root=data, split=SPLITS[i], label_set=label_set):
            parts += of_split
            used.append(folder)
    if parts:
        unread = tuple(folder.name for folder in folders if folder not in used)
        what = f"class folders under {' '.join(f'{folder.name}/' for folder in used)}"
        return Layout("folders", data, what, tuple(parts), unread=unread)
    parts = _class_parts(data, root=data, split="train", label_set=label_set)
    return Layout("folders", data, "class folders, not yet split", tuple(parts)) if parts else None


def _class_parts(folder: Path, *, root: Path, split: str, label_set: str) -> list[Part]:
    """One part for every class folder in `folder`; none where no folder's name is a class. Never by sorted position."""
    folders = _subfolders(folder)
    numbers = [int(one.name) for one in folders if _is_number(one.name)]
    if not any(_is_number(one.name) or _class_name(one.name) for one in folders):
        return []
    if numbers and label_set == "auto":
        orders = " or ".join(
            f"--label_set {name} ({', '.join(f'{i} {label}' for i, label in enumerate(LABEL_SETS[name].names))})"
            for name in ("fer7", "affectnet8")
        )
        raise MetadataError(f"{folder} holds numbered class folders, which do not say their order – say it: {orders}")
    if numbers and 0 not in numbers and len(LABEL_SETS[label_set]) in numbers:
        raise MetadataError(
            f"{folder}: class folders are numbered from 1, those of {label_set} from 0 – rename them to "
            f"{', '.join(LABEL_SETS[label_set].names)} as they mean"
        )
    parts = []
    source = folder.name or folder.resolve().name
    for one in folders:
        label, fault = _class_name(one.name), None
        if label is None and _is_number(one.name):
            known = LABEL_SETS[label_set].names
            number = int(one.name)
            label = known[number] if number < len(known) else None
            fault = None if label else _class_fault(number, label_set)
        elif label is None:
            fault = f"folder {one.name} is no class"
        parts.append(Part(split, source, _with_separator(one), _prefix(one, root), label=label, fault=fault))
    return parts


def _annotated_part(folder: Path, root: Path, *, split: str, source: str) -> Part | None:
    """The images/ and annotations/ of a folder, where it has both."""
    inside = {one.name.lower(): one for one in _subfolders(folder)}
    if "images" not in inside or "annotations" not in inside:
        return None
    images, annotations = inside["images"], inside["annotations"]
    return Part(
        split,
        source,
        _with_separator(images),
        _prefix(images, root),
        annotations=_with_separator(annotations),
        annotations_prefix=_prefix(annotations, root),
    )


def _pixel_layout(path: Path, kind: str) -> Layout:
    return Layout(kind, path.parent, path.name, pixels=path)


def _nothing_recognised(data: Path, layout: str) -> str:
    """The message for a folder without a layout: what was looked for, what is there, and a folder below that has one."""
    wanted = list(LAYOUTS.values()) if layout == "auto" else [LAYOUTS[layout]]
    message = f"no known layout in {data} – looked for {'; '.join(wanted)}; found {_contents(data)}"
    below = [one for folder in _subfolders(data) for one in (folder, *_subfolders(folder))]
    fitting = [one for one in below if any(layout in ("auto", found.name) for found in _layouts_in(one, "fer7"))]
    if fitting:
        return f"{message} – try --data {fitting[0].as_posix()} (make metadata DATA={fitting[0].as_posix()})"
    if any(path.suffix.lower() in (".zip", ".tar", ".gz", ".rar", ".7z") for path in data.iterdir()):
        return f"{message} – unpack the archive first"
    return f"{message} – put a data set there (README.md says where they come from), or name its folder: --data DIR"


def _contents(folder: Path, shown: int = 8) -> str:
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    more = f", … ({len(names)} in all)" if len(names) > shown else ""
    return (", ".join(names[:shown]) + more) or "nothing: it is empty"


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones and what archivers of macOS leave behind."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return [folder / name for name in sorted(names)]


def _split_of(name: str) -> str | None:
    return SPLIT_ALIASES.get(re.sub(r"[^a-z]", "", name.lower()))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) <= NUMBER_MAX


def _class_name(name: str) -> str | None:
    try:
        return canonical(name)
    except KeyError:
        return None


def _class_fault(number: int, label_set: str) -> str:
    """The reason for a class number that a label set does not have; AffectNet's 8 to 10 have their own."""
    if label_set.startswith("affectnet") and number in AFFECTNET_OTHER:
        return AFFECTNET_OTHER[number]
    return "class out of range"


def _with_separator(folder: Path) -> str:
    return os.path.join(os.path.abspath(folder), "")  # noqa: PTH100, PTH118 - Path drops the separator


def _prefix(folder: Path, root: Path) -> str:
    """What to put before a name to get its path relative to the root, or its absolute path where it is not under it."""
    folder, root = Path(os.path.abspath(folder)), Path(os.path.abspath(root))  # noqa: PTH100 - keeps symbolic links
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix() + "/"


# ---- reading images and annotations ---------------------------------------------------------------------------------


def list_images(part: Part) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of a part's images, sorted, and (path, reason) of the files that cannot belong to a face.

    Class folders are searched to the bottom. Annotations without an image are left out and named, too.
    """
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    below = [""]
    while below:
        inside = below.pop()
        with os.scandir(part.folder + inside) as entries:
            for entry in entries:
                name = inside + entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if part.annotations is None:
                        below.append(name + "/")
                elif not name.lower().endswith(IMAGE_EXTENSIONS):
                    skipped.append((part.prefix + name, "not an image by its name"))
                elif not _is_text(name):
                    skipped.append((part.prefix + name, "name is not valid unicode"))
                else:
                    names.append(name)
    if part.annotations is not None:
        stems = {name[: name.rindex(".")] for name in names}
        with os.scandir(part.annotations) as entries:
            for entry in entries:
                if entry.name.endswith("_exp.npy") and entry.name[:-8] not in stems and not entry.name.startswith("."):
                    skipped.append((part.annotations_prefix + entry.name, "annotation without an image"))
    return sorted(names), sorted(skipped)


def read_faces(listed: Sequence[tuple[Part, list[str]]], *, verify: bool, workers: int | None) -> Iterator[FaceChunk]:
    """Check images and read annotations, in the order given whatever `workers` is. `verify` decodes each image.

    `workers` processes do it, by default as many as are worth starting; one means this process itself. Raises MetadataError
    where a worker dies.
    """
    tasks = [
        (part, names[start : start + CHUNK_ROWS], verify)
        for part, names in listed
        for start in range(0, len(names), CHUNK_ROWS)
    ]
    # Forking is quick, and safe while no other Python thread may hold a lock that a worker wants (none wants tqdm's).
    # Spawning takes a second, and is all that Windows and macOS have.
    alone = {thread.name for thread in threading.enumerate()} <= {threading.current_thread().name, "tqdm_monitor"}
    method = "fork" if sys.platform == "linux" and alone else "spawn"
    if workers is None:
        rows_per_worker = ROWS_PER_WORKER["verify" if verify else method]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, min(cores, 8, sum(len(names) for _, names in listed) // rows_per_worker))
    return map(_read_chunk, tasks) if workers == 1 else _read_in_processes(tasks, workers, method)


def _read_in_processes(tasks: list[tuple[Part, list[str], bool]], workers: int, method: str) -> Iterator[FaceChunk]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_start_worker)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of the threads of numpy's BLAS; BLAS minds forks itself, and is not used here.
            warnings.simplefilter("ignore", DeprecationWarning)
            chunks = pool.map(_read_chunk, tasks)
        yield from chunks
    except BrokenProcessPool:
        raise MetadataError("a worker process ended unexpectedly (out of memory?) – try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(0)  # its threads do not survive a fork, and the processes are many already


def _read_chunk(task: tuple[Part, list[str], bool]) -> FaceChunk:
    part, names, verify = task
    if part.fault is not None:
        faults = dict.fromkeys(range(len(names)), part.fault)
    else:
        checked = ((i, image_fault(part.folder + name, decode=verify)) for i, name in enumerate(names))
        faults = {i: f"image: {fault}" for i, fault in checked if fault is not None}
    classes = np.zeros(len(names), np.int8)
    affect = np.full((len(names), 2), np.nan, np.float32)
    has_landmarks = np.zeros(len(names), bool)
    if part.annotations is not None:
        stems = [part.annotations + name[: name.rindex(".")] for name in names]
        columns = (("_exp.npy", 1), ("_val.npy", 1), ("_aro.npy", 1), ("_lnd.npy", LANDMARK_VALUES))
        for kind, count in columns:
            rows = np.array([i for i in range(len(names)) if i not in faults], np.int64)
            values, unread = read_npy_values([stems[i] + kind for i in rows], count)
            wrong: dict[int, str] = {}
            if kind == "_exp.npy":
                classes[rows], wrong = _as_classes(values)
            elif kind == "_val.npy":
                affect[rows, 0], wrong = _as_affect(values, "valence")
            elif kind == "_aro.npy":
                affect[rows, 1], wrong = _as_affect(values, "arousal")
            else:
                has_landmarks[rows] = [k not in unread for k in range(len(rows))]
            faults.update((int(rows[k]), fault) for k, fault in wrong.items() if k not in unread)
            for k, fault in unread.items():
                if fault != "missing" or kind == "_exp.npy":
                    faults[int(rows[k])] = f"{kind}: {fault}"
    return FaceChunk(part, names, classes, affect, has_landmarks, faults)


def _as_classes(values: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """AffectNet class numbers as int8 (0 where faulty), and the faults by position."""
    known = np.isin(values, np.arange(len(LABEL_SETS["affectnet8"])))
    faults = {}
    for k in np.flatnonzero(~known):
        whole = float(values[k]).is_integer()  # NaN and the infinities are not
        faults[int(k)] = _class_fault(int(values[k]), "affectnet8") if whole else "not a class number"
    return np.where(known, values, 0).astype(np.int8), faults


def _as_affect(values: np.ndarray, name: str) -> tuple[np.ndarray, dict[int, str]]:
    """Valence or arousal in [-1, 1], NaN where missing, and the faults by position."""
    values = np.where(values == AFFECT_SENTINEL, np.nan, values)
    outside = np.flatnonzero(np.abs(values) > 1 + AFFECT_TOLERANCE)
    return np.clip(values, -1, 1), dict.fromkeys(outside.tolist(), f"{name} outside [-1, 1]")


def read_npy_values(paths: Sequence[str], count: int = 1) -> tuple[np.ndarray, dict[int, str]]:
    """The first of the `count` values of each npy file as float64, NaN where there is none, and the faults by position.

    Nothing is ever unpickled. AffectNet's scalars are 0-d text, other programs write numbers of any type and shape (1,).
    The faults: "missing", "unreadable", "empty", "truncated", "not an npy file", "pickled", "wrong dtype", "wrong shape",
    "not a number".

    Files with the same header are decoded together: a file costs three system calls and little more, where np.load parses
    each header anew.
    """
    values = np.full(len(paths), np.nan)
    faults: dict[int, str] = {}
    same_header: dict[bytes, tuple[list[int], list[bytes]]] = {}
    for i, path in enumerate(paths):
        try:
            descriptor = os.open(path, READ_FLAGS)
        except OSError as error:
            faults[i] = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            continue
        try:
            data = os.read(descriptor, NPY_BYTES_MAX)
        except OSError:
            faults[i] = "unreadable"
            continue
        finally:
            os.close(descriptor)
        header = data[:128] if data[6:10] == USUAL_HEADER else data[: _header_bytes(data)]
        alike = same_header.get(header)
        if alike is None:
            alike = same_header[header] = ([], [])
        alike[0].append(i)
        alike[1].append(data)
    for header, (positions, files) in same_header.items():
        try:
            dtype = _npy_dtype(header, count)
        except FaceFault as error:
            faults.update(dict.fromkeys(positions, str(error)))
            continue
        start, end = len(header), len(header) + count * dtype.itemsize
        short = [i for i, data in zip(positions, files, strict=True) if len(data) < end]
        if short:
            faults.update(dict.fromkeys(short, "truncated"))
            positions = [i for i in positions if i not in faults]
            files = [data for data in files if len(data) >= end]
        first = np.frombuffer(b"".join([data[start : start + dtype.itemsize] for data in files]), dtype)
        try:
            values[positions] = first.astype(np.float64)
        except ValueError:  # text that is no number, somewhere among them
            for i, value in zip(positions, first, strict=True):
                try:
                    values[i] = float(value)
                except ValueError:
                    faults[i] = "not a number"
    return values, faults


def _header_bytes(data: bytes) -> int:
    """How many bytes stand before the values of an npy file; its version 1 has two bytes for their number, 2 and 3 four."""
    field_bytes = 2 if data[6:7] == b"\x01" else 4
    return 8 + field_bytes + int.from_bytes(data[8 : 8 + field_bytes], "little")


def _npy_dtype(header: bytes, count: int) -> np.dtype:
    """The type of `count` values, from all that stands before them in their file. Raises FaceFault."""
    if not header:
        raise FaceFault("empty")
    if not header.startswith(b"\x93NUMPY"[: len(header)]):
        raise FaceFault("not an npy file")
    if len(header) < _header_bytes(header):
        raise FaceFault("truncated")
    # Version 3 differs from 2 only in names of fields, and fields are refused here.
    read = np.lib.format.read_array_header_1_0 if header[6:7] == b"\x01" else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(io.BytesIO(header[8:]))
    except Exception:  # whatever Python's parser makes of a damaged header
        raise FaceFault("not an npy file") from None
    if dtype.hasobject:
        raise FaceFault("pickled")
    if dtype.kind not in "iufUS" or not 0 < dtype.itemsize <= ITEM_BYTES_MAX:
        raise FaceFault("wrong dtype")
    if math.prod(shape) != count:
        raise FaceFault("wrong shape")
    return dtype


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- reading FER2013 and FER+ ---------------------------------------------------------------------------------------


def pixel_rows(path: Path) -> Iterator[PixelRow]:
    """Every row of a FER2013 file in its order, the faulty ones included. All images have the size of the first good one.

    Raises MetadataError where the file has not the columns of FER2013.
    """
    shape: tuple[int, ...] | None = None
    for row in _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path):
        fault = row.fault
        if fault is None and row.image is not None:
            shape = shape or row.image.shape
            if row.image.shape != shape:
                fault = "wrong number of pixels"
        if fault is None and not 0 <= row.emotion < len(LABEL_SETS["fer7"]):
            fault = "class out of range"
        if fault is None and row.usage is not None and _split_of(row.usage) is None:
            fault = "unknown Usage"
        yield row if fault is None else row._replace(image=None, fault=fault)


def split_of_usage(usage: str | None) -> str:
    """Training, PublicTest, PrivateTest → train, val, test; a file without the column is all train."""
    return (_split_of(usage) or "train") if usage else "train"


def _csv_rows(path: Path) -> Iterator[PixelRow]:
    csv.field_size_limit(10_000_000)  # csv's own limit is passed by the pixels of a 224 × 224 image
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        columns = {name.strip().lower(): i for i, name in enumerate(next(reader, []))}
        if not {"emotion", "pixels"} <= columns.keys():
            raise MetadataError(f"{path} has no columns emotion and pixels; its columns are {', '.join(columns) or 'none'}")
        emotion_at, pixels_at, usage_at = columns["emotion"], columns["pixels"], columns.get("usage")
        try:
            for row, fields in enumerate(filter(None, reader)):  # without blank lines
                if len(fields) < len(columns):
                    if any("\n" in field for field in fields):  # which holds all rows after it
                        raise MetadataError(f"{path}: the quotation mark of row {row + 1} is not closed – mend that line")
                    yield PixelRow(row, -1, None, None, "too few columns")
                    continue
                emotion = _class_number(fields[emotion_at])
                usage = None if usage_at is None else fields[usage_at].strip()
                image = _pixels(fields[pixels_at])
                yield PixelRow(row, emotion, usage, image, "pixels cannot be read" if image is None else None)
        except csv.Error as error:
            raise MetadataError(f"{path}, line {reader.line_num}: {error}") from None


def _class_number(value: object) -> int:
    """A class's number, -1 for what is none; 3.0 is 3, as pandas writes it where other rows have none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return -1
    return int(number) if number.is_integer() else -1


def _pixels(text: str) -> np.ndarray | None:
    """The square image of a row of numbers, (H, W) uint8, or None where it is not one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns where it stops early
        try:
            values = np.fromstring(text, np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    side = math.isqrt(len(values))
    if side == 0 or side * side != len(values) or values.min() < 0 or values.max() > 255:
        return None
    return values.astype(np.uint8).reshape(side, side)


def _parquet_rows(path: Path) -> Iterator[PixelRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise MetadataError(f"{path} is not a parquet file: {error}") from None
    with file:
        names = {name.lower(): name for name in file.schema_arrow.names}
        if not {"emotion", "png"} <= names.keys():
            raise MetadataError(f"{path} has no columns emotion and png; its columns are {', '.join(names)}")
        kind = file.schema_arrow.field(names["png"]).type
        if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
            raise MetadataError(f"{path}: the column png holds {kind}, not the bytes of PNG files")
        wanted = [names[key] for key in ("row", "emotion", "usage", "png") if key in names]
        position = 0
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=wanted):
            columns = {name.lower(): values for name, values in batch.to_pydict().items()}
            for i, png in enumerate(columns["png"]):
                row = columns["row"][i] if "row" in columns else position
                usage = columns["usage"][i] if "usage" in columns else None
                image, fault = _decoded(png or b"")
                yield PixelRow(row, _class_number(columns["emotion"][i]), usage, image, fault)
                position += 1


def _decoded(encoded: bytes) -> tuple[np.ndarray | None, str | None]:
    fault = bytes_fault(encoded[:TAIL_BYTES], encoded[-TAIL_BYTES:], len(encoded))
    if fault is not None:
        return None, f"image: {fault}"
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    return image, "image: cannot be decoded" if image is None else None


def read_ferplus(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """Usage and votes (N, 10) uint8 of every row of fer2013new.csv, in the order of FERPLUS_VOTES.

    Raises MetadataError where the file is not there or has not these columns.
    """
    path = Path(path)
    if not path.is_file():
        raise MetadataError(f"--ferplus {path} not found – it is fer2013new.csv of github.com/microsoft/FERPlus")
    usage, votes = [], []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        try:
            columns = {name.strip().lower(): i for i, name in enumerate(next(reader, []))}
            at = {_class_name(name) or name: i for name, i in columns.items()}
            missing = [name for name in ("usage", *FERPLUS_VOTES) if name not in at]
            if missing:
                raise MetadataError(f"{path} has no column {', '.join(missing)} – give fer2013new.csv of FERPlus")
            for fields in filter(None, reader):  # without blank lines
                votes.append(np.array([int(fields[at[name]]) for name in FERPLUS_VOTES], np.uint8))
                usage.append(fields[at["usage"]].strip())
        except (ValueError, IndexError, OverflowError, csv.Error):
            raise MetadataError(f"{path}, line {reader.line_num}: not the votes of ten taggers") from None
    return usage, np.array(votes, np.uint8).reshape(-1, len(FERPLUS_VOTES))


def ferplus_majority(votes: np.ndarray) -> np.ndarray:
    """The column of FERPLUS_VOTES that wins each row of votes (N, 10), or -1 where none does.

    Single votes count as zero, and the winner needs more than half of the votes that remain over all ten columns
    (Barsoum, Zhang, Canton Ferrer and Zhang 2016, majority mode, as in the authors' code).
    """
    counted = np.where(votes > 1, votes, 0).astype(np.int64)
    best = counted.argmax(axis=1)
    won = 2 * counted.max(axis=1) > counted.sum(axis=1)
    return np.where(won, best, -1)


def ferplus_distribution(votes: np.ndarray) -> np.ndarray:
    """The share of votes of each of the eight expressions, in the order of FERPLUS_VOTES: (N, 10) → (N, 8) float32.

    Single votes count as zero; rows that "unknown" or "nf" wins, or that no expression has two votes of, are NaN (the
    distribution mode of the same authors, but for rows without a majority, which stay).
    """
    counted = np.where(votes > 1, votes, 0).astype(np.float32)
    expressions = counted[:, :8]
    total = expressions.sum(axis=1, keepdims=True)
    usable = (ferplus_majority(votes)[:, None] < 8) & (total > 0)
    return np.where(usable, expressions / np.maximum(total, 1.0), np.nan).astype(np.float32)
