"""How fast metadata_parallel.py is against the plain way, and how its memory grows with the number of faces.

    python tests/bench_metadata.py              30,000 faces with four npy files each; one to six minutes, by the disk
    python tests/bench_metadata.py --rows 2000  a quick look; fixed costs weigh more, so the targets are not judged

The plain way is what such scripts usually do: a pool of 8 threads, os.path.exists, np.load per file, a dict per row, then
a DataFrame, a stratified split and three parquet files. Both read the same files, just written and so in the system's
cache, in turns; the median of the rounds counts. It needs two idle cores: with one, the threads of the plain way do not
contend for the interpreter and cost less. Memory is the peak of a fresh process and of the largest of its two workers, at
--rows and at four times as many. Status 1 where a target is missed: 8 times the rows a second, 600 bytes a row.

Files go to the system's folder for temporary ones; TMPDIR=/dev/shm keeps them off a slow disk.
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import metadata_parallel  # noqa: E402 - found through the line above
from command_line import Parser  # noqa: E402

RATIO_TARGET = 8.0
BYTES_A_ROW_TARGET = 600.0
JUDGED_ROWS = 30_000
KINDS = ("exp", "val", "aro", "lnd")

PEAK_SCRIPT = """
import resource, sys
import metadata_parallel
status = metadata_parallel.main(["--data", sys.argv[1], "--out", sys.argv[2], "--workers", "2"])
unit = 1 if sys.platform == "darwin" else 1024
print(status, *(unit * resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def write_faces(folder: Path, rows: int) -> None:
    """Faces in the layout of AffectNet's release: text scalars and 136 float landmarks."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    jpeg = cv2.imencode(".jpg", random.integers(0, 256, (96, 96, 3), np.uint8))[1].tobytes()
    for i in range(rows):
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg)
        stem = str(folder / "annotations" / str(i))
        np.save(f"{stem}_exp.npy", np.array(str(i % 8)))
        np.save(f"{stem}_val.npy", np.array(f"{random.uniform(-1, 1):.6g}"))
        np.save(f"{stem}_aro.npy", np.array(f"{random.uniform(-1, 1):.6g}"))
        np.save(f"{stem}_lnd.npy", random.uniform(0, 96, 136))


def link_faces(source: Path, folder: Path, rows: int, copies: int) -> None:
    """`copies` times the faces of `source` under new names, as hard links: names cost memory here, contents do not."""
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for i in range(rows * copies):
        (folder / "images" / f"{i}.jpg").hardlink_to(source / "images" / f"{i % rows}.jpg")
        for kind in KINDS:
            (folder / "annotations" / f"{i}_{kind}.npy").hardlink_to(source / "annotations" / f"{i % rows}_{kind}.npy")


def plain_way(data: Path, out: Path) -> None:
    """images/ and annotations/ to three parquet files, as it is usually written."""

    def row(path: str) -> dict[str, object] | None:
        stem = os.path.join(data, "annotations", os.path.splitext(os.path.basename(path))[0])  # noqa: PTH118, PTH119, PTH122
        expression, valence, arousal, landmarks = (f"{stem}_{kind}.npy" for kind in KINDS)
        if not os.path.exists(expression) or os.path.getsize(path) == 0:  # noqa: PTH110, PTH202 - the plain way
            return None
        return {
            "path": path,
            "label": int(np.load(expression).item()),
            "valence": float(np.load(valence).item()) if os.path.exists(valence) else np.nan,  # noqa: PTH110
            "arousal": float(np.load(arousal).item()) if os.path.exists(arousal) else np.nan,  # noqa: PTH110
            "landmarks": landmarks if os.path.exists(landmarks) and np.load(landmarks).size == 136 else None,  # noqa: PTH110
        }

    paths = sorted(str(path) for path in (data / "images").glob("*.jpg"))
    with ThreadPoolExecutor(8) as pool:
        rows = [one for one in pool.map(row, paths) if one is not None]
    frame = pd.DataFrame(rows)
    train, val = train_test_split(frame, test_size=0.2, stratify=frame["label"], random_state=42)
    for name, part in (("all", frame), ("train", train), ("val", val)):
        part.to_parquet(out / f"metadata_{name}.parquet")


def fast_way(data: Path, out: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        if metadata_parallel.main(["--data", str(data), "--out", str(out)]) != 0:
            raise SystemExit("metadata_parallel failed")


def seconds(way: Callable[[Path, Path], None], data: Path, out: Path) -> float:
    start = time.perf_counter()
    way(data, out)
    return time.perf_counter() - start


def check_same(plain: Path, fast: Path) -> None:
    """Both ways must have read the same, or their times mean nothing."""
    slow = pd.read_parquet(plain / "metadata_all.parquet")
    quick, _ = metadata_parallel.read_metadata(fast / "metadata_all.parquet")
    same = len(slow) == len(quick) and all(
        np.allclose(slow[name].to_numpy(np.float32), quick[name].to_numpy(np.float32)) for name in ("valence", "arousal")
    )
    if not same or quick["landmarks"].isna().any():
        raise SystemExit("the two ways disagree")


def peak_bytes(data: Path, out: Path) -> int:
    """Peak memory of a fresh process that indexes a folder, with that of its largest worker."""
    command = [sys.executable, "-c", PEAK_SCRIPT, str(data), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    status, own, worker = map(int, done.stdout.splitlines()[-1].split())
    if status != 0:
        raise SystemExit(done.stderr)
    return own + worker


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--rows", type=int, default=JUDGED_ROWS, help="faces to write (30,000)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way runs (3)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-metadata-") as name:
        folder = Path(name)
        data, outs = folder / "data", {way: folder / way.__name__ for way in (plain_way, fast_way)}
        for out in outs.values():
            out.mkdir()
        write_faces(data, args.rows)
        times: dict[Callable[[Path, Path], None], list[float]] = {way: [] for way in outs}
        for _ in range(args.rounds):
            for way, out in outs.items():
                times[way].append(seconds(way, data, out))
        check_same(outs[plain_way], outs[fast_way])
        plain, fast = (args.rows / statistics.median(taken) for taken in times.values())
        print(f"plain way          {plain:>9,.0f} rows/s")
        print(f"metadata_parallel  {fast:>9,.0f} rows/s: {fast / plain:.1f} times (target {RATIO_TARGET:.0f})")
        few = peak_bytes(data, outs[fast_way])
        link_faces(data, folder / "more", args.rows, 4)
        shutil.rmtree(outs[fast_way])
        many = peak_bytes(folder / "more", outs[fast_way])
        growth = (many - few) / (3 * args.rows)
        print(
            f"peak memory        {few / 2**20:.0f} MiB at {args.rows:,} rows, {many / 2**20:.0f} MiB at {4 * args.rows:,}: "
            f"{growth:.0f} bytes a row (target {BYTES_A_ROW_TARGET:.0f})"
        )
    missed = fast / plain < RATIO_TARGET or growth > BYTES_A_ROW_TARGET
    return int(missed and args.rows >= JUDGED_ROWS)


if __name__ == "__main__":
    sys.exit(main())
