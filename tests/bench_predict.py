"""How soon predict.py answers, how many faces a second the networks read, and how memory grows with a folder.

    make bench-predict                                                     a drawn portrait, the shipped network
    python tests/bench_predict.py --photo face.jpg runs/a/best.onnx runs/a/best_int8.onnx

A cold start is a whole process, `python predict.py PHOTO`, beside `python -c "import torch"`, in turns, the median of the
rounds after one that fills the system's cache. Faces a second are those of the network alone, on crops that are input
already, in batches; a single one is a batch of one. Memory is the peak of a fresh process on folders of --few and --many
links to the photo, made small. Status 1 where a target is missed: 0.6 of importing
torch, 200 MB, 5 ms a face, 50 MB between the folders.
It needs idle cores.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faces import read_image  # noqa: E402 - found through the line above

from command_line import Parser  # noqa: E402
from onnx_network import OnnxNetwork  # noqa: E402
from predict import DEFAULT_MODEL, network_file  # noqa: E402
from sample_faces import draw_face  # noqa: E402

TORCH_SHARE, COLD_MB, FACE_MS, GROWTH_MB = 0.6, 200.0, 5.0, 50.0
BATCH, SECONDS = 256, 3.0


# Runs a Python process from a small one: what its parent holds when it is started counts in Linux's peak, too.
MEASURE = """
import resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def run(*command: str) -> tuple[float, float]:
    """A Python process: its wall time in seconds and its peak memory in MB. Raises CalledProcessError where it fails."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak) * (1 if sys.platform == "darwin" else 1024) / 1e6


def per_second(network: OnnxNetwork, faces: int) -> float:
    """Faces a second in batches of so many."""
    side, channels = network.preprocess.size_px, network.preprocess.channels
    images = np.random.default_rng(0).normal(size=(faces, channels, side, side)).astype(np.float32)
    network(images)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        network(images)
        done += faces
    return done / (time.perf_counter() - begin)


def main(argv: list[str] | None = None) -> int:
    """Print a line a measurement; status 1 where a target is missed."""
    parser = Parser(__doc__)
    parser.add_argument("models", nargs="*", default=[DEFAULT_MODEL], help="networks (default: the shipped one)")
    parser.add_argument("--photo", type=Path, help="default: a drawn portrait of a megapixel")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--few", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--many", type=int, default=10_000, help="default: %(default)s")
    args = parser.parse_args(argv)
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = args.photo
        if photo is None:
            photo = folder / "portrait.jpg"
            drawn, _ = draw_face(np.random.default_rng(0), "happy", 0.8, 0.4, 1000)
            cv2.imwrite(str(photo), drawn[:, :, ::-1])
        predict = str(ROOT / "predict.py")
        alone, whole = [], []
        for _ in range(args.rounds + 1):
            alone.append(run("-c", "import torch")[0])
            whole.append(run(predict, str(photo), "--model", args.models[0]))
        torch_s, cold_s = statistics.median(alone[1:]), statistics.median(time_s for time_s, _ in whole[1:])
        peak = max(megabytes for _, megabytes in whole)
        print(f"cold start {cold_s:.2f} s, {cold_s / torch_s:.2f} of importing torch ({torch_s:.2f} s); peak {peak:.0f} MB")
        missed += ["cold start"] * (cold_s > TORCH_SHARE * torch_s) + ["memory"] * (peak > COLD_MB)
        for model in args.models:
            network = OnnxNetwork(network_file(model))
            single_ms = 1000 / per_second(network, 1)
            print(f"{model}: {per_second(network, BATCH):.0f} faces a second in batches, {single_ms:.2f} ms for one alone")
            missed += [f"{model} alone"] * (single_ms > FACE_MS)
        small = folder / "small.jpg"
        cv2.imwrite(str(small), cv2.resize(read_image(photo)[:, :, ::-1], (96, 96), interpolation=cv2.INTER_AREA))
        peaks = []
        for count in (args.few, args.many):
            links = folder / str(count)
            links.mkdir()
            for number in range(count):
                (links / f"{number:07d}.jpg").symlink_to(small)
            time_s, megabytes = run(predict, str(links), "--csv", str(folder / f"{count}.csv"), "--model", args.models[0])
            peaks.append(megabytes)
            print(f"folder of {count:,} pictures: {megabytes:.1f} MB, {count / time_s:.0f} pictures a second")
        missed += ["memory by folder"] * (peaks[1] - peaks[0] > GROWTH_MB)
    print(f"missed: {', '.join(missed)}" if missed else "every target is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
