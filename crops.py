"""A folder of photos → the same folder of face crops, aligned as FER2013's are; what is no picture goes along unchanged,
and crops of photos that are gone are removed.

`metadata_parallel.py --crop DIR` does this first and then indexes the crops; by itself:

    python crops.py photos crops --detector yunet
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from faces import (
    DETECTORS,
    IMAGE_EXTENSIONS,
    Detector,
    DetectorError,
    ImageError,
    align_face,
    crop_face,
    find_faces,
    make_detector,
    read_image,
)

import cv2
from tqdm import tqdm

from command_line import Parser, line_of

# Where YuNet's landmarks lie on average in FER2013's Training pictures, as shares of the side, and the margin that these
# have round the box of the Haar cascade; both measured on 1,000 of them, as export.py does.
FER2013_LANDMARKS = (0.3094, 0.3723, 0.6748, 0.3749, 0.488, 0.5838, 0.3497, 0.7493, 0.6395, 0.7498)
FER2013_MARGIN = 0.1
SIZE_PX = 224
WORKERS_MAX = 60  # Windows waits for 63 processes at most
CHUNK = 64  # files handed to a process at a time
CROPPED, COPIED = "cropped", "no picture: copied"
ANNOTATIONS = ("_exp.npy", "_val.npy", "_aro.npy", "_lnd.npy")  # AffectNet's, of the photo of the same number


class Cropped(NamedTuple):
    """How many pictures have a crop, how many crops of photos that are gone were removed, and the pictures without a crop,
    (path, reason)."""

    cropped: int
    removed: int
    left_out: list[tuple[str, str]]


class CropError(Exception):
    """Folders that do not fit; the message is one line and says what to do next."""


def files_of(source: Path, target: Path) -> Iterator[str]:
    """The files below a folder, relative to it, by name; the target is left out where it lies inside, and a link to a folder
    that it lies in."""
    for folder, folders, names in os.walk(source, followlinks=True):  # layouts.py reads linked classes, too
        real = {name: (Path(folder) / name).resolve() for name in folders}
        around = {target.resolve(), Path(folder).resolve(), *Path(folder).resolve().parents}
        folders[:] = sorted(name for name in folders if real[name] not in around)
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), source)  # noqa: PTH118


def crop_file(name: str, *, source: Path, target: Path, detector: str, model: str | None) -> str:
    """Write the largest face of one picture, or a copy of what is none; returns what was done, or why not.

    What is there already and as old as its source, which it got its date from, stays.
    """
    here, there = source / name, target / name
    is_picture = here.suffix.lower() in IMAGE_EXTENSIONS
    if name.endswith("_lnd.npy"):  # AffectNet's landmarks are places in the photo, not in its crop
        there.unlink(missing_ok=True)
        return COPIED
    if not here.is_file():  # a link to nothing
        there.unlink(missing_ok=True)
        return "not a file"
    dates = here.stat().st_atime_ns, here.stat().st_mtime_ns
    if there.is_file() and there.stat().st_mtime_ns == dates[1]:
        return CROPPED if is_picture else COPIED
    there.parent.mkdir(parents=True, exist_ok=True)
    temporary = there.with_name(f".{there.name}.tmp{there.suffix}")
    if not is_picture:
        shutil.copy(here, temporary)
        os.utime(temporary, ns=dates)
        temporary.replace(there)
        return COPIED
    there.unlink(missing_ok=True)  # the crop of a picture that was another one then
    try:
        image = read_image(here)
        faces = find_faces(detector_of(detector, model), image)
    except ImageError as error:
        return str(error)
    if not faces:
        return "no face found"
    face = faces[0]
    if face.landmarks is not None:
        crop = align_face(image, face.landmarks, FER2013_LANDMARKS)
    else:
        crop = crop_face(image, face, FER2013_MARGIN)
    interpolation = cv2.INTER_AREA if len(crop) > SIZE_PX else cv2.INTER_LINEAR
    crop = cv2.resize(crop, (SIZE_PX, SIZE_PX), interpolation=interpolation)
    extension = there.suffix.lower()
    quality = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}
    settings = [quality[extension], 95] if extension in quality else []
    cv2.imencode(extension, cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), settings)[1].tofile(temporary)
    os.utime(temporary, ns=dates)
    temporary.replace(there)
    return CROPPED


@cache
def detector_of(name: str, model: str | None) -> Detector:
    """The detector of this process, made once."""
    return make_detector(name, model)[0]


def start_worker() -> None:
    """One OpenCV thread a process: the processes are the parallelism."""
    cv2.setNumThreads(0)


def crop_folder(source: Path, target: Path, *, detector: str, model: str | None, workers: int | None) -> Cropped:
    """Crop every picture below `source` into `target`, and remove there what is left of pictures that are gone.

    Raises DetectorError, and CropError where source and target do not fit.
    """
    if not source.is_dir():
        raise CropError(
            f"{source} is no folder of photos" if source.exists() else f"{source} not found – is the path right?"
        )
    if target.resolve() == source.resolve() or target.resolve() in source.resolve().parents:
        raise CropError(f"crops cannot be written over their photos: {target} – give another folder")
    if workers is not None and not 1 <= workers <= WORKERS_MAX:
        raise CropError(f"--workers {workers}: give a number from 1 to {WORKERS_MAX}")
    _, used = make_detector(detector, model)  # so that a lacking file is said once
    note = target / ".detector"
    if not note.is_file() and target.is_dir() and any(target.iterdir()):
        raise CropError(f"{target} holds other files than crops – give an empty folder")
    by, _, of = note.read_text(encoding="utf-8").partition("\n") if note.is_file() else (used, "", str(source.resolve()))
    if by != used:
        raise CropError(f"{target} holds crops by {by or 'an unknown detector'}, not {used} – give another folder")
    if of != str(source.resolve()):
        raise CropError(f"{target} holds crops of {of} – give another folder")
    names = list(files_of(source, target))
    if not names:
        raise CropError(f"{source} holds no files – is the path right?")
    target.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"{note.name}.tmp")
    temporary.write_text(f"{by}\n{of}", encoding="utf-8")
    temporary.replace(note)
    work = partial(crop_file, source=source, target=target, detector=detector, model=model)
    count = removed = 0
    left_out: list[tuple[str, str]] = []
    for name in set(files_of(target, source)) - {*names, note.name}:
        is_picture = Path(name).suffix.lower() in IMAGE_EXTENSIONS
        if is_picture or name.endswith(ANNOTATIONS):
            (target / name).unlink()
            removed += is_picture
    try:
        with ProcessPoolExecutor(workers or min(os.cpu_count() or 1, WORKERS_MAX), initializer=start_worker) as pool:
            done = pool.map(work, names, chunksize=max(1, min(CHUNK, len(names) // 8)))
            bar = tqdm(done, total=len(names), desc="cropping", unit="file", leave=False, disable=None)
            for name, outcome in zip(names, bar, strict=True):
                count += outcome == CROPPED
                if outcome not in (CROPPED, COPIED):
                    left_out.append((str(source / name), outcome))
    except BrokenProcessPool:
        raise CropError("a worker process ended unexpectedly (out of memory?) – try --workers 1") from None
    return Cropped(count, removed, left_out)


def outcome_lines(cropped: Cropped, target: Path) -> list[str]:
    """The outcomes for people to read."""
    faces, removed, left_out = cropped
    lines = [f"crops      {faces:,} faces in {target.as_posix()}/, {len(left_out):,} pictures left out"]
    lines += [f"{removed:>9,}   crops of photos that are gone: removed"] if removed else []
    return lines + [f"{count:>9,}   {reason}" for reason, count in Counter(reason for _, reason in left_out).most_common()]


def main(argv: Sequence[str] | None = None) -> int:
    """Crop a folder; status 2 with one line where that cannot be done."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="PHOTOS", help="folder of photos")
    parser.add_argument("target", type=Path, metavar="CROPS", help="folder for the crops")
    parser.add_argument("--detector", choices=[name for name in DETECTORS if name != "none"], default="auto")
    parser.add_argument("--detector_model", "--detector-model", metavar="ONNX", help="YuNet's file (default: as predict.py)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    args = parser.parse_args(argv)
    try:
        cropped = crop_folder(
            args.source, args.target, detector=args.detector, model=args.detector_model, workers=args.workers
        )
    except (CropError, DetectorError, OSError) as error:
        print(f"crops.py: {line_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncrops.py: interrupted – call it again to go on", file=sys.stderr)
        return 130
    print("\n".join(outcome_lines(cropped, args.target)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
