"""What was found in pictures, and how it is written down: text with bars, JSON, tables that can be resumed, pictures.

python predict.py photos --csv faces.csv --save annotated
"""

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from faces import FILE_MAX_BYTES, MAX_PIXELS, Face

import cv2
import numpy as np

BAR_WIDTH = 30
DETECTOR_NAMES = {"haar": "OpenCV's Haar cascade – make detector fetches YuNet, which finds more", "yunet": "YuNet"}
CUT = "\0"  # what a line of CSV lacks
EXPLAINED_PX = 240  # side of a face
SHOWN_MIN = 0.1  # of log-odds, that are drawn in full colour where no place has more
FOR_COLOUR, AGAINST_COLOUR = (213, 94, 0), (0, 114, 178)  # Okabe and Ito's vermillion and blue
JPEG_MAX_PX = 65_500  # of a side
LANDMARKS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")
LABEL_PX = 240  # width of a picture on which every label can be read whole
BOX_COLOUR = (86, 180, 233)  # Okabe and Ito's sky blue, RGB: seen on skin, and black letters are read on it

# What to do about the faults of image files that people meet most.
HINTS = {
    "missing": "is the path right?",
    "a folder, not a picture": "is there a picture in it?",
    "not an image": "JPEG, PNG, WebP, BMP, TIFF and GIF can be read",
    "truncated": "copy or download it again",
    f"larger than {MAX_PIXELS // 1_000_000} million pixels": "make it smaller first",
    f"larger than {FILE_MAX_BYTES // 1_000_000} MB": "make it smaller first",
    "cannot be searched for faces": "is it too large for this machine's memory?",
}


class TableError(Exception):
    """A table that cannot be written; the message is one line and says what to do next."""


class FacePrediction(NamedTuple):
    """One face: its box and score as detected, the probability of each label (they sum to 1), valence and arousal in
    [−1, 1] or None where the network was not trained on them."""

    face: Face
    probabilities: dict[str, float]
    valence: float | None
    arousal: float | None

    @property
    def label(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


class Answer(NamedTuple):
    """What is said of one picture: `detected` is False where the faces are the whole picture, not found in it."""

    path: str
    detected: bool
    faces: list[FacePrediction]
    error: str | None


def to_dict(result: Answer, *, detector: str) -> dict[str, Any]:
    """An answer as the JSON documents it, with the name of the detector; unknown figures are null."""
    faces = []
    for prediction in result.faces:
        box = prediction.face
        faces.append(
            {
                "box": [box.x, box.y, box.w, box.h],
                "label": prediction.label,
                "probabilities": {name: round(value, 6) for name, value in prediction.probabilities.items()},
                "valence": prediction.valence,
                "arousal": prediction.arousal,
                "score": None if math.isnan(box.score) else box.score,
                "landmarks": None if box.landmarks is None else [[round(x, 1), round(y, 1)] for x, y in box.landmarks],
            }
        )
    return {
        "path": result.path, "detected": result.detected, "detector": detector, "faces": faces, "error": result.error,
    }  # fmt: skip


def to_text(result: Answer, *, detector: str) -> str:
    """An answer for people to read, with a bar for each probability."""
    if result.error is not None:
        return f"{result.path}: {result.error}" + (f" – {HINTS[result.error]}" if result.error in HINTS else "")
    if not result.faces:
        more = f", by {DETECTOR_NAMES[detector]}" if detector in DETECTOR_NAMES else ""
        return f"{result.path}: no face found{more} (a picture that is a face already: --detector none)"
    lines = []
    for number, prediction in enumerate(result.faces, start=1):
        box = prediction.face
        where = f"face {number} of {len(result.faces)} at {box.x},{box.y}, {box.w}×{box.h} px"
        if not result.detected:
            where = "taken whole" + ("" if detector == "none" else ": no face found, but it looks like a face crop")
        lines.append(f"{result.path}: {prediction.label} {prediction.probabilities[prediction.label]:.0%} ({where})")
        for name, value in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<9} {value:6.1%} {'█' * round(BAR_WIDTH * value)}".rstrip())
        if prediction.valence is not None and prediction.arousal is not None:
            lines.append(f"  valence {prediction.valence:+.2f}, arousal {prediction.arousal:+.2f}")
    return "\n".join(lines)


# Tables


def columns(labels: Sequence[str]) -> list[str]:
    """The columns of a table: a row a face, and one row for a picture without."""
    landmarks = [f"{name}_{axis}" for name in LANDMARKS for axis in "xy"]
    found = ["picture", "path", "face", "detected", "x", "y", "w", "h", "score", *landmarks]
    return [*found, "label", *(f"p_{name}" for name in labels), "valence", "arousal", "error"]


def rows(number: int, result: Answer, labels: Sequence[str]) -> Iterator[list[Any]]:
    """The rows of a picture, the `number`-th of all; None where there is nothing to say."""
    empty = [None] * (5 + 2 * len(LANDMARKS) + 1 + len(labels) + 2)
    if not result.faces:
        yield [number, result.path, None, result.detected, *empty, result.error]
    for index, prediction in enumerate(result.faces):
        box = prediction.face
        places = [None] * (2 * len(LANDMARKS))
        if box.landmarks is not None:
            places = [round(value, 1) for place in box.landmarks for value in place]  # type: ignore[misc]
        score = None if math.isnan(box.score) else box.score
        shares = [round(prediction.probabilities[name], 6) for name in labels]
        affect = [None if value is None else round(value, 4) for value in (prediction.valence, prediction.arousal)]
        yield [
            number, result.path, index, result.detected, box.x, box.y, box.w, box.h, score, *places,
            prediction.label, *shares, *affect, None,
        ]  # fmt: skip


class Table:
    """A CSV or Parquet file of answers that may be interrupted at any time, and gone on with.

    Rows go into the CSV (for Parquet into a CSV beside it, which becomes the file at the end); a note beside it says how
    many pictures are whole and which, how many could not be read, up to which byte, and of which call. Raises TableError
    where there is a file or a note and `resume` is not asked for, or they are of another call or damaged; of a file that is
    whole, which has no note, labels and pictures alone tell its call.
    """

    def __init__(self, path: Path, labels: Sequence[str], *, call: dict[str, Any], resume: bool) -> None:
        self.path, self.labels, self.call = path, labels, call
        parquet = path.suffix.lower() == ".parquet"
        if parquet and find_spec("pyarrow") is None:
            raise TableError(f"{path} needs pyarrow – run: pip install pyarrow, or give --csv")
        self.file_path = path.with_name(path.name + ".partial.csv") if parquet else path
        self.note = path.with_name(path.name + ".progress")
        self.done = self.failed = 0  # pictures of this shard that are whole; of these the ones that could not be read
        self.names, self.expected = hashlib.sha256(), ""  # of these pictures, in order
        begun = self.note.is_file()
        self.complete = not begun and path.is_file() and path.stat().st_size > 0
        if self.complete:
            if not resume:
                raise TableError(f"{path} is there already – remove it, or give another name")
            if header_of(path) != columns(labels):
                raise TableError(f"{path} has not the columns of this call – remove it, or give another name")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.go_on(resume=resume) if begun else 0
        self.file = self.file_path.open("r+b" if size else "wb")
        self.file.truncate(size)
        self.file.seek(size)
        if not size:
            self.mark()  # a file without a note is complete
            self.file.write(self.encode([columns(labels)]))
            self.mark()

    def check(self, names: Iterable[str]) -> None:
        """Hold a complete file against the pictures of this call, and count those that could not be read. Raises
        TableError where they are others."""
        for name, told in itertools.zip_longest(names, pictures_in(self.path)):
            if name is None or told is None or as_text(name) != as_text(told[0]):
                raise TableError(f"{self.path} is complete, and of other pictures – give another name, or remove it")
            self.failed += told[1]

    def go_on(self, *, resume: bool) -> int:
        """Take up what the note says; returns up to which byte the file is whole."""
        remove = f"remove {self.file_path} and {self.note}"
        if not resume:
            raise TableError(f"{self.path} is there in part – go on with --resume, or {remove}")
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            call, size, self.expected = noted["call"], int(noted["bytes"]), noted["names"]
            self.done, self.failed = int(noted["done"]), int(noted["failed"])
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(f"{self.note} is damaged – {remove}") from error
        other = ", ".join(key for key in self.call if self.call[key] != call.get(key))
        if other:
            then = f"other {other} (--model {call.get('model')})"
            raise TableError(f"{self.path} was begun with {then} – call it as before, or {remove}")
        if not self.file_path.is_file() or self.file_path.stat().st_size < size:
            raise TableError(f"{self.file_path} is shorter than it was – {remove}")
        return size

    def encode(self, lines: Sequence[Sequence[Any]]) -> bytes:
        """Lines of CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return as_text(text.getvalue())

    def mark(self) -> None:
        """Note how far the file is whole."""
        self.file.flush()
        noted = {"done": self.done, "failed": self.failed, "bytes": self.file.tell(), "names": self.names.hexdigest()}
        temporary = self.note.with_name(self.note.name + ".tmp")
        temporary.write_text(json.dumps(noted | {"call": self.call}), encoding="utf-8")
        temporary.replace(self.note)

    def skip(self, names: Iterator[tuple[int, str]]) -> None:
        """Pass over the pictures that are whole. Raises TableError where they are others than then."""
        for _, name in itertools.islice(names, self.done):
            self.names.update(os.fsencode(name) + b"\0")
        if self.done and self.names.hexdigest() != self.expected:
            raise TableError(f"{self.path} was begun with other pictures – give the same, or remove it and {self.note}")

    def write(self, results: Sequence[tuple[int, Answer]]) -> None:
        """Add the rows of some pictures."""
        for _, result in results:
            self.names.update(os.fsencode(result.path) + b"\0")
        self.file.write(self.encode([line for number, result in results for line in rows(number, result, self.labels)]))
        self.done += len(results)
        self.failed += sum(result.error is not None for _, result in results)
        self.mark()

    def close(self) -> None:
        """Finish the file; for Parquet turn the CSV into it."""
        self.file.close()
        if self.file_path != self.path:
            to_parquet(self.file_path, self.path, self.labels)
        self.note.unlink()
        if self.file_path != self.path:
            self.file_path.unlink()


def as_text(written: str) -> bytes:
    """What a table holds: bytes of paths that are no text as \\udc..., a carriage return, which ends a line, as \\r."""
    return written.replace("\r", "\\r").encode("utf-8", "backslashreplace")


def header_of(path: Path) -> list[str]:
    """The columns of a table's file; none where it is no table."""
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        with path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])
    except (ValueError, csv.Error):  # pyarrow's own are ValueErrors, too
        return []


def pictures_in(path: Path) -> Iterator[tuple[str, bool]]:
    """The pictures of a complete table, in order, and whether each could not be read. Raises TableError for a CSV of which
    lines are cut."""
    with ExitStack() as files:
        lines: Iterator[dict[str, Any]]
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            table = files.enter_context(pq.ParquetFile(path))
            batches = table.iter_batches(columns=["picture", "path", "error"])
            lines = (line for batch in batches for line in batch.to_pylist())
        else:
            file = files.enter_context(path.open(newline="", encoding="utf-8", errors="replace"))
            lines = csv.DictReader(file, restval=CUT)
        try:
            for _, faces in itertools.groupby(lines, key=itemgetter("picture")):
                first, *others = faces
                if any(face["error"] == CUT for face in (first, *others)):
                    raise TableError(f"{path} is cut short – remove it, or give another name")
                yield first["path"] or "", bool(first["error"])  # an empty name is null in Parquet
        except csv.Error as error:
            raise TableError(f"{path} is damaged ({error}) – remove it, or give another name") from error


def to_parquet(source: Path, target: Path, labels: Sequence[str]) -> None:
    """A table's CSV as Parquet, some rows at a time."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    names = columns(labels)
    whole = dict.fromkeys(("picture", "face", "x", "y", "w", "h"), pa.int64())
    text = dict.fromkeys(("path", "label", "error"), pa.string())
    types = dict.fromkeys(names, pa.float64()) | whole | text | {"detected": pa.bool_()}
    convert = pyarrow.csv.ConvertOptions(
        column_types=types, strings_can_be_null=True, null_values=[""], true_values=["True"], false_values=["False"]
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    temporary = target.with_name(target.name + ".tmp")
    with (
        pyarrow.csv.open_csv(source, convert_options=convert, parse_options=parse) as batches,
        pq.ParquetWriter(temporary, pa.schema([(name, types[name]) for name in names])) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
    temporary.replace(target)


# Pictures


def annotate(image: np.ndarray, predictions: Sequence[FacePrediction], *, boxes: bool = True) -> np.ndarray:
    """A copy of an RGB picture with a box round each face, its label and probability on a ground above it. Without boxes the
    picture is the face: it gets a strip above it for the label, and where it is narrow so many pixels that this fits."""
    picture = np.ascontiguousarray(image).copy()
    if not boxes and predictions:
        times = max(1, min(-(-LABEL_PX // picture.shape[1]), 4 * LABEL_PX // picture.shape[0]))
        picture = cv2.resize(picture, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
        height, width = picture.shape[:2]
        label_px = max(LABEL_PX, min(width, 2 * height))
        strip = label_px // 6
        picture = cv2.copyMakeBorder(picture, strip, 0, 0, 0, cv2.BORDER_CONSTANT)
        predictions = [prediction._replace(face=Face(0, strip, width, height, math.nan)) for prediction in predictions]
    for prediction in predictions:
        face = prediction.face
        scale = max(0.4, min(face.w, face.h) / 180) if boxes else label_px / 320
        thick = max(1, round(scale * 1.6))
        if boxes:
            cv2.rectangle(picture, (face.x, face.y), (face.x + face.w, face.y + face.h), BOX_COLOUR, thick + 1)
        text = f"{prediction.label} {prediction.probabilities[prediction.label]:.0%}"
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        left = max(0, min(face.x, picture.shape[1] - width - 4))
        base = max(height + below, face.y - below - 2)
        cv2.rectangle(picture, (left, base - height - 4), (left + width + 4, base + below), BOX_COLOUR, cv2.FILLED)
        cv2.putText(picture, text, (left + 2, base), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thick, cv2.LINE_AA)
    return picture


def save_annotated(folder: Path, number: int, result: Answer, image: np.ndarray) -> None:
    """Write a picture with its answers drawn in, as JPEG, under its own name and number."""
    write_jpeg(folder, f"{number:06d}_{stem_of(result.path)}.jpg", annotate(image, result.faces, boxes=result.detected))


def save_explained(
    folder: Path, number: int, result: Answer, faces: Sequence[np.ndarray], maps: Sequence[np.ndarray]
) -> None:
    """Write each face as the network saw it, RGB (H, W, 3), and beside it, orange, where hiding a part lowers the odds of
    the answer (and blue, where it raises them), by `maps` of log-odds (H, W); one line a face.
    """
    lines = []
    for prediction, face, fall in zip(result.faces, faces, maps, strict=True):
        side = (EXPLAINED_PX, EXPLAINED_PX)
        picture = cv2.resize(face, side, interpolation=cv2.INTER_CUBIC)
        share = cv2.resize((fall / max(float(np.abs(fall).max()), SHOWN_MIN)).astype(np.float32), side)[:, :, None]
        colour = np.where(share > 0, np.array(FOR_COLOUR), np.array(AGAINST_COLOUR)).astype(np.float32)
        weight = 0.75 * np.abs(share)
        marked = np.rint(picture * (1 - weight) + colour * weight).astype(np.uint8)
        factor = math.exp(min(max(0.0, float(fall.max())), math.log(9999)))
        words = (
            (f"{prediction.label} {prediction.probabilities[prediction.label]:.0%}: hidden,", (0, 0, 0)),
            (f"odds fall (to 1/{factor:.{0 if factor >= 10 else 1}f})", FOR_COLOUR),
            ("or rise", AGAINST_COLOUR),
        )
        ground, left = np.full((28, 2 * EXPLAINED_PX, 3), 255, np.uint8), 6
        for text, ink in words:
            cv2.putText(ground, text, (left, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, 1, cv2.LINE_AA)
            left += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 8
        lines.append(np.vstack([ground, np.hstack([picture, marked])]))
    write_jpeg(folder, f"{number:06d}_{stem_of(result.path)}_explained.jpg", np.vstack(lines))


def stem_of(path: str) -> str:
    """A file's name or an address's end without extension, in letters that every file system takes, and not too many."""
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", Path(path).stem) or "picture"
    return os.fsencode(stem)[-150:].decode("utf-8", "replace").replace("\ufffd", "_")


def at_most(side_px: int, picture: np.ndarray) -> np.ndarray:
    """A picture as it is, or so much smaller that its longer side has `side_px`."""
    longer = max(picture.shape[:2])
    if longer <= side_px:
        return picture
    height, width = (max(1, side * side_px // longer) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def write_jpeg(folder: Path, name: str, picture: np.ndarray) -> None:
    """Write an RGB picture, smaller where JPEG cannot hold it, under a temporary name, then rename it."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = at_most(JPEG_MAX_PX, picture)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    target = folder / name
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(encoded.tobytes())
    temporary.replace(target)
