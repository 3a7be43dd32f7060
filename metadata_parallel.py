"""From a data folder to the metadata that every later script reads: one row a face, in parquet files.

    python metadata_parallel.py --data data --out .

The layout is recognised (see layouts.LAYOUTS) and named. Written into --out, each under a temporary name first:

    metadata_all.parquet, metadata_train.parquet, metadata_val.parquet, and metadata_test.parquet where there is a test split
    metadata_images.npy   the pixels of a CSV or parquet file, (N, H, W) uint8, one row an image, to be memory-mapped
    metadata_skipped.csv  what was left out: path (below the data root; of --crop the photo's; or FILE:ROW, from 0), reason

Columns: path, index, label, valence, arousal, landmarks, split, source; with --ferplus also votes_<label>. The file's own
metadata, under the key "fer", is JSON: label set, seed, layout, data root, split_id and more (see `file_metadata`).

A given split is kept. Where there is no val, a stratified one is taken from train: of each class the rounded fraction, at
least one row and never all, by numpy's PCG64 with the seed; a class with one row stays in train. A test set kept elsewhere
(--test_data) has paths relative to the data root where it stands under it, else absolute ones.
"""

import csv
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from faces import DETECTORS, DetectorError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

import crops
import layouts
from command_line import Parser, line_of
from labels import CANONICAL_NAMES, LABEL_SETS, LabelSet, remap
from layouts import FERPLUS_VOTES, SPLITS, FaceChunk, Layout, MetadataError, Part

if TYPE_CHECKING:  # pandas takes 0.4 s to import, and every worker process imports this file
    import pandas as pd

FORMAT = 1
METADATA_KEY = b"fer"
IMAGES_FILE = "metadata_images.npy"
SKIPPED_FILE = "metadata_skipped.csv"
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the data root, POSIX; null for the pixels of a file
        ("index", pa.int32()),  # row in metadata_images.npy; null for an image file
        ("label", pa.string()),  # canonical name
        ("valence", pa.float32()),  # [-1, 1], NaN where missing
        ("arousal", pa.float32()),
        ("landmarks", pa.string()),  # path of an npy file of 136 numbers, or null
        ("split", pa.string()),  # train, val, test
        ("source", pa.string()),  # the folder or file that the row was read from
    ]
)
VOTES_SCHEMA = pa.schema([*SCHEMA, *((f"votes_{name}", pa.uint8()) for name in FERPLUS_VOTES)])  # with --ferplus
DIGEST_ROWS = 10_000  # rows turned into Python strings at a time
VAL_FRACTION = 0.2

Skipped = list[tuple[str, str]]  # (path, reason)


def build_parser() -> Parser:
    parser = Parser(__doc__)

    def add(flag: str, **settings: Any) -> None:
        parser.add_argument(*dict.fromkeys((flag, "--" + flag[2:].replace("_", "-"))), **settings)

    sets = ["auto", *LABEL_SETS]
    add("--data", type=Path, help="data folder, or one fer2013.csv or fer2013.parquet (default: data, else this folder)")
    add("--out", type=Path, default=Path(), help="folder to write into (default: this folder)")
    add("--layout", choices=["auto", *layouts.LAYOUTS], default="auto", help="take this layout, where a folder has several")
    add("--label_set", choices=sets, default="auto", help="classes to keep, by name; what numbered class folders mean")
    add("--val_fraction", type=float, help=f"part of train that becomes val where there is none ({VAL_FRACTION})")
    add("--seed", type=int, default=42, help="seed of that split (42)")
    add("--workers", type=int, help="processes that read image folders (default: by cores and number of images)")
    add("--test_data", type=Path, metavar="DIR", help="class folders of a test set that is kept elsewhere")
    add("--ferplus", type=Path, metavar="FILE", help="fer2013new.csv: adds FER+ votes; --label_set ferplus8 labels by them")
    add("--crop", type=Path, metavar="DIR", help="find the faces in a folder of photos, write crops there, and index those")
    add("--detector", choices=DETECTORS[:-1], default="auto", help="of --crop: YuNet where its file is there, else Haar")
    add("--detector_model", metavar="ONNX", help="of --crop: YuNet's file (default: as predict.py)")
    add("--verify", action="store_true", help="decode every image, too (slower)")
    add("--inspect", type=Path, metavar="FILE", help="print what a metadata parquet holds, and write nothing")
    return parser


# ---- for other scripts ----------------------------------------------------------------------------------------------


def read_metadata(path: str | os.PathLike[str]) -> tuple["pd.DataFrame", dict[str, Any]]:
    """The rows of a metadata parquet and the file's own metadata (see `file_metadata`).

    `index` is a nullable Int32 and missing text is null. Raises MetadataError where there is no such file or it was not
    written by this script.
    """
    table, info = _read_table(path)
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    if info is None or info.get("format") != FORMAT or missing:
        lacks = f"it lacks {', '.join(missing)}" if missing else "it does not name its label set and data root"
        raise MetadataError(f"{path} was not written by metadata_parallel.py: {lacks} – run: make metadata DATA=...")
    import pandas as pd

    return table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get), info


def resolve_data_root(
    parquet_path: str | os.PathLike[str], info: dict[str, Any], override: str | os.PathLike[str] | None = None
) -> Path:
    """The folder that paths of a metadata parquet are relative to: `override`, or what the file itself says.

    Raises MetadataError where that folder is not there.
    """
    root = Path(override) if override is not None else Path(parquet_path).parent / info["data_root"]
    if not root.is_dir():
        raise MetadataError(f"data root {root} of {parquet_path} not found – say where the data is: --data_root DIR")
    return root


def _read_table(path: str | os.PathLike[str]) -> tuple[pa.Table, dict[str, Any] | None]:
    """A parquet file and its "fer" metadata, None where it has none."""
    path = Path(path)
    if not path.is_file():
        raise MetadataError(f"{path.name} not found in {path.parent.as_posix()}/ – run: make metadata DATA=...")
    try:
        table = pq.read_table(path)
        raw = (table.schema.metadata or {}).get(METADATA_KEY)
        return table, None if raw is None else json.loads(raw)
    except (pa.ArrowInvalid, ValueError) as error:
        raise MetadataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


# ---- collecting rows ------------------------------------------------------------------------------------------------


def choose_label_set(layout: Layout, requested: str, *, ferplus: bool) -> LabelSet:
    """The label set to write: the one requested, or what the layout says of itself. Raises MetadataError."""
    if ferplus and layout.pixels is None:
        raise MetadataError(
            "--ferplus joins by row and needs fer2013.csv, icml_face_data.csv or fer2013.parquet; "
            f"{layout.root} holds {layout.what}"
        )
    if requested == "ferplus8" and layout.pixels is not None and not ferplus:
        raise MetadataError("--label_set ferplus8 is the majority of the FER+ votes – add: --ferplus fer2013new.csv")
    if requested != "auto":
        return LABEL_SETS[requested]
    if layout.name in ("annotations", "affectnet") or any(part.label == "contempt" for part in layout.parts):
        return LABEL_SETS["affectnet8"]
    return LABEL_SETS["fer7"]


def collect_faces(
    parts: Sequence[Part], target: LabelSet, schema: pa.Schema, *, workers: int | None, verify: bool
) -> tuple[list[pa.RecordBatch], Skipped]:
    """Rows of image folders and what was left out; see `layouts.read_faces` for `workers` and `verify`."""
    skipped: Skipped = []
    listed = []
    for part in parts:
        names, unusable = layouts.list_images(part)
        listed.append((part, names))
        skipped += unusable
    target_names = _names_in(target)
    batches = []
    chunks = layouts.read_faces(listed, verify=verify, workers=workers)
    with tqdm(total=sum(len(names) for _, names in listed), desc="faces", unit="face", disable=None) as progress:
        for chunk in chunks:
            columns, unusable = _face_columns(chunk, target, target_names)
            batches.append(_batch(columns, schema))
            skipped += unusable
            progress.update(len(chunk.names))
    return batches, skipped


def _face_columns(chunk: FaceChunk, target: LabelSet, target_names: dict[str, str | None]) -> tuple[dict[str, Any], Skipped]:
    part = chunk.part
    skipped: Skipped = []
    kept: list[int] = []
    labels: list[str] = []
    for i, number in enumerate(chunk.classes.tolist()):
        fault = chunk.faults.get(i)
        if fault is None:
            source_label = part.label or LABEL_SETS["affectnet8"].names[number]
            label = target_names[source_label]
            if label is not None:
                kept.append(i)
                labels.append(label)
                continue
            fault = _not_in(source_label, target)
        skipped.append((part.prefix + chunk.names[i], fault))
    stems = [chunk.names[i][: chunk.names[i].rindex(".")] for i in kept]
    there = chunk.has_landmarks[kept].tolist()
    columns = {
        "path": [part.prefix + chunk.names[i] for i in kept],
        "label": labels,
        "valence": chunk.affect[kept, 0],
        "arousal": chunk.affect[kept, 1],
        "landmarks": [
            f"{part.annotations_prefix}{stem}_lnd.npy" if known else None for stem, known in zip(stems, there, strict=True)
        ],
        "split": [part.split] * len(kept),
        "source": [part.source] * len(kept),
    }
    return columns, skipped


def collect_pixels(
    path: Path, target: LabelSet, schema: pa.Schema, images: "ImageArrayWriter", ferplus: Path | None
) -> tuple[list[pa.RecordBatch], Skipped]:
    """Rows of a FER2013 file and what was left out; every image that can be read goes to `images`, kept or not.

    With FER+ the votes are joined by row. Raises MetadataError where the two files are not of one data set.
    """
    usages, votes = layouts.read_ferplus(ferplus) if ferplus else ([], np.zeros((0, len(FERPLUS_VOTES)), np.uint8))
    winners = layouts.ferplus_majority(votes)
    by_votes = target.name == "ferplus8"
    target_names = _names_in(target)
    kept: list[tuple[int, int, str, str]] = []  # row, index, label, split
    skipped: Skipped = []
    rows = 0
    for row in tqdm(layouts.pixel_rows(path), desc=path.name, unit="face", disable=None):
        rows += 1
        if ferplus and row.row >= len(usages):
            raise MetadataError(f"{ferplus} has {len(usages)} rows, {path.name} has more – not the same data set")
        if ferplus and row.usage and row.usage.lower() != usages[row.row].lower():
            raise MetadataError(
                f"{ferplus}, row {row.row}: usage {usages[row.row]}, but {row.usage} in {path.name} – not the same data set"
            )
        if row.image is None:
            skipped.append((f"{path.name}:{row.row}", row.fault or "unreadable"))
            continue
        index = images.append(row.image)
        label, fault = _majority_label(winners[row.row]) if by_votes else _label(row.emotion, target, target_names)
        if label is None:
            skipped.append((f"{path.name}:{row.row}", fault))
        else:
            kept.append((row.row, index, label, layouts.split_of_usage(row.usage)))
    if ferplus and rows < len(usages):
        raise MetadataError(f"{ferplus} has {len(usages)} rows, {path.name} has only {rows} – not the same data set")
    at = np.array([row for row, *_ in kept], np.int64)
    columns: dict[str, Any] = {
        "index": [index for _, index, _, _ in kept],
        "label": [label for _, _, label, _ in kept],
        "valence": np.full(len(kept), np.nan, np.float32),
        "arousal": np.full(len(kept), np.nan, np.float32),
        "split": [split for *_, split in kept],
        "source": [path.name] * len(kept),
    }
    if ferplus:
        columns |= {f"votes_{name}": votes[at, i] for i, name in enumerate(FERPLUS_VOTES)}
    return [_batch(columns, schema)], skipped


def _label(emotion: int, target: LabelSet, target_names: dict[str, str | None]) -> tuple[str | None, str]:
    source_label = LABEL_SETS["fer7"].names[emotion]
    return target_names[source_label], _not_in(source_label, target)


def _majority_label(winner: int) -> tuple[str | None, str]:
    if winner < 0:
        return None, "FER+: no majority"
    name = FERPLUS_VOTES[winner]
    return (None, f"FER+: majority is {name}") if name in ("unknown", "nf") else (name, "")


def _names_in(target: LabelSet) -> dict[str, str | None]:
    """For every canonical name its name in the target set (disgust in fer4: angry), None where the set lacks it."""
    indices = remap(LabelSet("all", CANONICAL_NAMES), target)
    return {name: None if i is None else target.names[i] for name, i in zip(CANONICAL_NAMES, indices, strict=True)}


def _not_in(label: str, target: LabelSet) -> str:
    return f"{label} is not in {target.name}"


def _batch(columns: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """A batch of the schema; columns that are not given are null."""
    length = len(columns["label"])
    arrays = [pa.array(columns.get(field.name, [None] * length), field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# ---- splitting ------------------------------------------------------------------------------------------------------


def stratified_split(classes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which rows become val, (N,) bool, given their class indices (N,): of every class its share, as the module says."""
    random = np.random.Generator(np.random.PCG64(seed))
    in_val = np.zeros(len(classes), bool)
    for index in np.unique(classes):
        rows = np.flatnonzero(classes == index)
        share = min(max(1, int(fraction * len(rows) + 0.5)), len(rows) - 1)
        in_val[rows[np.argsort(random.random(len(rows)), kind="stable")[:share]]] = True
    return in_val


def with_val(table: pa.Table, target: LabelSet, fraction: float, seed: int) -> tuple[pa.Table, bool]:
    """The table with a val split, and whether it had to be made from train."""
    is_train = pc.equal(table["split"], "train").to_numpy()
    if pc.any(pc.equal(table["split"], "val")).as_py() or not is_train.any():
        return table, False
    rows = np.flatnonzero(is_train)
    classes = pc.index_in(table["label"], pa.array(target.names)).to_numpy()
    in_val = np.zeros(len(table), bool)
    in_val[rows] = stratified_split(classes[rows], fraction, seed)
    split = pc.if_else(pa.array(in_val), "val", table["split"])
    return table.set_column(table.schema.get_field_index("split"), SCHEMA.field("split"), split), True


def split_digest(table: pa.Table) -> str:
    """The split_id: 16 hex digits over path (or index), label and split of all rows in their order."""
    digest = hashlib.sha256()
    for start in range(0, len(table), DIGEST_ROWS):
        rows = table.slice(start, DIGEST_ROWS)
        face = pc.coalesce(rows["path"], pc.cast(rows["index"], pa.string()))
        lines = pc.binary_join_element_wise(face, rows["label"], rows["split"], "\t")
        digest.update("".join(f"{line}\n" for line in lines.to_pylist()).encode())
    return digest.hexdigest()[:16]


# ---- writing --------------------------------------------------------------------------------------------------------


class ImageArrayWriter:
    """Writes an npy file of images (N, H, W) uint8 one by one, whose number is not known beforehand."""

    def __init__(self, path: Path) -> None:
        self.file: IO[bytes] = path.open("wb")
        self.shape: tuple[int, ...] = (0, 0)
        self.count = 0

    def append(self, image: np.ndarray) -> int:
        """Write one (H, W) uint8 image; its index in the array."""
        if self.count == 0:
            self.shape = image.shape
            self._write_header()
        self.file.write(image.tobytes())
        self.count += 1
        return self.count - 1

    def __enter__(self) -> "ImageArrayWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """Put the final number of images into the header."""
        with self.file:
            self.file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that a growing first axis does not change its length.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def relative_root(root: Path, out: Path) -> str:
    """The data root as the metadata names it: relative to the folder it is written to, absolute where they share nothing."""
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))  # noqa: PTH100 - a symbolic link data/ stays data/
    if root.is_relative_to(out):
        return root.relative_to(out).as_posix()
    root, out = root.resolve(), out.resolve()  # the system resolves links before it goes up by ..
    if root.anchor != out.anchor or os.path.commonpath([root, out]) == root.anchor:
        return root.as_posix()
    return Path(os.path.relpath(root, out)).as_posix()


def file_metadata(
    layout: Layout, target: LabelSet, *, out: Path, seed: int, val_fraction: float, split_id: str
) -> dict[str, Any]:
    """What every written parquet says of itself under the key "fer"."""
    return {
        "format": FORMAT,
        "label_set": target.name,
        "layout": layout.name,
        "data_root": relative_root(layout.root, out),
        "images": IMAGES_FILE if layout.pixels else None,
        "seed": seed,
        "val_fraction": val_fraction,
        "split_id": split_id,
    }


def write_parquets(table: pa.Table, info: dict[str, Any], folder: Path) -> None:
    """metadata_all, _train, _val, and _test where there are test rows."""
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(info).encode()})
    pq.write_table(table, folder / "metadata_all.parquet")
    for split in SPLITS:
        rows = table.filter(pc.equal(table["split"], split))
        if len(rows) or split != "test":
            pq.write_table(rows, folder / f"metadata_{split}.parquet")


def write_skipped(skipped: Skipped, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *skipped])


def publish(written: Path, out: Path) -> list[str]:
    """Move what was written into place and remove what an earlier run left there; the names of the files."""
    names = sorted(path.name for path in written.iterdir())
    for name in names:
        (written / name).replace(out / name)
    for name in {"metadata_test.parquet", IMAGES_FILE} - set(names):
        (out / name).unlink(missing_ok=True)
    return names


# ---- telling --------------------------------------------------------------------------------------------------------


def count_rows(table: pa.Table) -> dict[tuple[str, str], int]:
    """The number of rows of each (split, label) that occurs."""
    counts = table.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
    return {(str(row["split"]), str(row["label"])): row["count_all"] for row in counts}


def count_table(counts: dict[tuple[str, str], int], names: Sequence[str]) -> Iterator[str]:
    """The lines of a table of rows per split and class; classes beyond `names` follow them."""
    names = [*names, *sorted({name for _, name in counts} - set(names))]
    splits = [*SPLITS, *sorted({split for split, _ in counts} - set(SPLITS))]
    widths = [max(8, len(name)) for name in names]
    yield "  ".join([" " * 6, *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)), f"{'all':>8}"])
    for split in splits:
        row = [counts.get((split, name), 0) for name in names]
        cells = [f"{count:>{width},}" for count, width in zip(row, widths, strict=True)]
        if any(row):
            yield "  ".join([f"{split:6}", *cells, f"{sum(row):>8,}"])


def reason_table(skipped: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The lines of a table of what was left out, the commonest reason first."""
    for reason, count in sorted(Counter(reason for _, reason in skipped).items(), key=lambda item: (-item[1], item[0])):
        yield f"{count:>8,}  {reason}"


def inspect(path: Path) -> Iterator[str]:
    """The lines of --inspect: a parquet's own metadata, rows per split and label, and its valence and arousal.

    Reads files of other programs, too: only a column `label` must be there. Raises MetadataError.
    """
    table, info = _read_table(path)
    if "label" not in table.schema.names:
        raise MetadataError(f"{path} has no column label; its columns are {', '.join(table.schema.names)}")
    try:
        labels = pc.cast(table["label"], pa.string())
    except pa.ArrowException:
        raise MetadataError(f"{path}: the column label holds {table['label'].type}, neither names nor numbers") from None
    yield f"{path}: {len(table):,} rows"
    yield from (f"  {key:12} {value}" for key, value in (info or {"metadata": "none of its own"}).items())
    table = table.set_column(table.schema.get_field_index("label"), "label", labels)
    if "split" not in table.schema.names:
        table = table.append_column("split", pa.array(["?"] * len(table)))
    label_set = LABEL_SETS.get(info["label_set"]) if info else None
    yield from count_table(count_rows(table), label_set.names if label_set else ())
    for name in ("valence", "arousal"):
        if name not in table.schema.names:
            yield f"{name}: no such column"
            continue
        try:
            values = pc.cast(table[name], pa.float64()).to_numpy()  # null becomes NaN
        except pa.ArrowException:
            yield f"{name}: {table[name].type}, not numbers"
            continue
        known_values = values[np.isfinite(values) & (values != layouts.AFFECT_SENTINEL)]
        spread = f"{known_values.min():.4f} to {known_values.max():.4f}" if len(known_values) else "no values"
        sentinels = int((values == layouts.AFFECT_SENTINEL).sum())
        outside = int((np.abs(known_values) > 1).sum() + np.isinf(values).sum())
        missing = int(np.isnan(values).sum())
        yield f"{name}: {spread}; {missing:,} missing (NaN), {sentinels:,} × -2, {outside:,} outside [-1, 1]"


# ---- the script -----------------------------------------------------------------------------------------------------


class Built(NamedTuple):
    """A finished run: what was found and what was written."""

    layout: Layout
    target: LabelSet
    info: dict[str, Any]
    table: pa.Table
    skipped: Skipped
    files: list[str]
    val_made: bool


def build_metadata(
    data: Path,
    out: Path,
    *,
    layout: str = "auto",
    label_set: str = "auto",
    val_fraction: float = VAL_FRACTION,
    seed: int = 42,
    workers: int | None = None,
    test_data: Path | None = None,
    ferplus: Path | None = None,
    verify: bool = False,
    not_cropped: Sequence[tuple[str, str]] = (),
) -> Built:
    """Index a data folder and write its metadata; `not_cropped` (path, reason) is listed with what is left out here. Raises
    MetadataError, and OSError where `out` cannot be written."""
    found = layouts.recognise(data, layout=layout, label_set=label_set)
    target = choose_label_set(found, label_set, ferplus=ferplus is not None)
    test_parts = layouts.class_folder_test(test_data, found.root, target.name) if test_data is not None else ()
    if found.pixels is not None:
        idle = {"test_data": test_data, "verify": verify, "workers": workers}
        if given := [name for name, value in idle.items() if value]:
            raise MetadataError(f"--{given[0]} is for folders of pictures; {found.pixels} holds pixels – leave it out")
    schema = VOTES_SCHEMA if ferplus else SCHEMA
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".metadata-", dir=out) as folder:
        written = Path(folder)
        if found.pixels is not None:
            with ImageArrayWriter(written / IMAGES_FILE) as images:
                batches, skipped = collect_pixels(found.pixels, target, schema, images, ferplus)
        else:
            batches, skipped = collect_faces(found.parts, target, schema, workers=workers, verify=verify)
        if test_data is not None:
            if any(pc.any(pc.equal(batch["split"], "test")).as_py() for batch in batches):
                raise MetadataError(f"--test_data {test_data}: {data} has a test split of its own – leave --test_data out")
            more, unusable = collect_faces(test_parts, target, schema, workers=workers, verify=verify)
            indexed = {path for batch in batches for path in batch["path"].to_pylist()}
            if both := [path for batch in more for path in batch["path"].to_pylist() if path in indexed]:
                raise MetadataError(f"--test_data {test_data}: {both[0]} is in {data}, too – take it out there")
            batches += more
            skipped += unusable
        skipped += not_cropped
        table = pa.Table.from_batches(batches, schema)
        if not len(table):
            reasons = "; ".join(line.strip() for line in reason_table(skipped)) or "it holds no images"
            raise MetadataError(f"nothing usable in {data} ({found.what}): {reasons}")
        table, val_made = with_val(table, target, val_fraction, seed)
        info = file_metadata(found, target, out=out, seed=seed, val_fraction=val_fraction, split_id=split_digest(table))
        write_parquets(table, info, written)
        write_skipped(skipped, written / SKIPPED_FILE)
        files = publish(written, out)
    return Built(found, target, info, table, skipped, files, val_made)


def report(built: Built, out: Path, *, unused_fraction: bool) -> Iterator[str]:
    """The lines to print at the end of a run."""
    layout, target, info = built.layout, built.target, built.info
    yield f"layout     {layout.name}: {layout.what}"
    if layout.unread:
        yield f"not read   {', '.join(f'{name}/' for name in layout.unread)}"
    yield f"data root  {info['data_root']}"
    yield f"label set  {target.name}: {' '.join(target.names)}"
    yield f"split_id   {info['split_id']}"
    if built.val_made:
        yield f"val        made from train: stratified, {info['val_fraction']}, seed {info['seed']}"
    if unused_fraction:
        yield "val        as the data give it: --val_fraction does nothing here"
    yield ""
    yield from count_table(count_rows(built.table), target.names)
    yield ""
    yield f"left out: {len(built.skipped):,}" + (f", listed in {SKIPPED_FILE}" if built.skipped else "")
    yield from reason_table(built.skipped)
    yield f"written to {out.as_posix()}/: {', '.join(built.files)}"
    if not pc.any(pc.equal(built.table["split"], "train")).as_py():
        yield "there are no rows to train on, only to score"
    else:
        train, val = ((out / f"metadata_{split}.parquet").as_posix() for split in ("train", "val"))
        here = out.resolve() == Path().resolve()
        yield "next: " + ("make train MODEL=lightcnn" if here else f"python train.py --train_meta {train} --val_meta {val}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.inspect is not None:
            if idle := [name for name, value in vars(args).items() if value not in (args.inspect, parser.get_default(name))]:
                raise MetadataError(f"--{idle[0]} does nothing beside --inspect – leave it out")
            lines = inspect(args.inspect)
        else:
            if args.val_fraction is not None and not 0 < args.val_fraction < 1:
                raise MetadataError(f"--val_fraction {args.val_fraction}: give a part of train between 0 and 1, such as 0.2")
            if args.seed < 0:
                raise MetadataError(f"--seed {args.seed}: give a number from 0")
            if args.workers is not None and not 1 <= args.workers <= layouts.WORKERS_MAX:
                raise MetadataError(f"--workers {args.workers}: give a number from 1 to {layouts.WORKERS_MAX}")
            data = args.data or (Path("data") if Path("data").is_dir() else Path())
            not_cropped: Skipped = []
            if args.crop is not None and args.test_data is not None:
                raise MetadataError("--crop leaves --test_data uncropped – crop it first: python crops.py PHOTOS CROPS")
            if args.crop is None and (args.detector != "auto" or args.detector_model is not None):
                raise MetadataError("--detector and --detector_model do nothing here – add --crop DIR")
            if args.crop is not None:
                if layouts.recognise(data, layout=args.layout, label_set=args.label_set).pixels is not None:
                    raise MetadataError(f"--crop: the pictures of {data} are faces already – leave it out")
                cropped = crops.crop_folder(
                    data, args.crop, detector=args.detector, model=args.detector_model, workers=args.workers
                )
                print("\n".join(crops.outcome_lines(cropped, args.crop)))
                data, not_cropped = args.crop, cropped.left_out
            built = build_metadata(
                data,
                args.out,
                layout=args.layout,
                label_set=args.label_set,
                val_fraction=args.val_fraction or VAL_FRACTION,
                seed=args.seed,
                workers=args.workers,
                not_cropped=not_cropped,
                test_data=args.test_data,
                ferplus=args.ferplus,
                verify=args.verify,
            )
            lines = report(built, args.out, unused_fraction=args.val_fraction is not None and not built.val_made)
        for line in lines:
            print(line)
    except (MetadataError, crops.CropError, DetectorError, OSError) as error:
        print(f"metadata_parallel.py: {line_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("metadata_parallel.py: interrupted; what an earlier run wrote is unchanged", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
