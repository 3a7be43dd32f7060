"""The mean of the weights of several checkpoints of one network, as one network ("model soup", Wortsman et al. 2022).

They must have one origin: epochs of one run, or runs that go on from one checkpoint (train.py --init). Networks of other
seeds have nothing in common that could be averaged; evaluate.py makes ensembles of those. Whether the mean is better, the
validation rows say:

    python average.py runs/a/best.pth runs/a/last.pth --out runs/a_mean
    python evaluate.py runs/a_mean --split val
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from command_line import Parser, line_of
from evaluate import EvaluationError, write_record
from models import Checkpoint, ModelError, checkpoint_path, load_checkpoint, save_checkpoint, versions

ALIKE = ("model", "model_args", "labels", "preprocess", "split_id")
KEPT = (*ALIKE, "format", "label_set", "affect_rows", "class_counts", "recipe", "seed")


def average(members: Sequence[Checkpoint], paths: Sequence[Path]) -> dict[str, Any]:
    """The contents of a checkpoint whose weights, and means and variances of BatchNorm, are the mean of the members'.

    Of KEPT it has what they share. Raises ModelError where they are not one network for the same classes, input and split.
    """
    infos, states = [member.info for member in members], [member.model.state_dict() for member in members]
    for path, info in zip(paths[1:], infos[1:], strict=True):
        for key in ALIKE:
            if info.get(key) != infos[0].get(key):
                raise ModelError(f"{path} has another {key} than {paths[0]}: there is no mean of their weights")

    def mean(key: str, value: Tensor) -> Tensor:
        # BatchNorm counts its batches in an integer, which nothing reads.
        return torch.stack([state[key] for state in states]).mean(dim=0) if value.is_floating_point() else value

    shared = {key: infos[0].get(key) for key in KEPT if all(info.get(key) == infos[0].get(key) for info in infos)}
    return shared | {"versions": versions(), "state_dict": {key: mean(key, value) for key, value in states[0].items()}}


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="checkpoints or run folders (best.pth)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new network: best.pth and its record")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the mean; status 2 with one line where that cannot be done."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    paths = [checkpoint_path(path) for path in args.checkpoints]
    target = args.out / "best.pth"
    try:
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise ModelError(f"{args.out} is there already – remove it, or give another --out")
        if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
            raise ModelError("a mean wants two checkpoints or more, each named once")
        if onnx := [path for path in paths if path.suffix.lower() == ".onnx"]:
            raise ModelError(f"{onnx[0]} is an ONNX file – give checkpoints: best.pth")
        members = [load_checkpoint(path) for path in paths]
        contents = average(members, paths) | {"exp": args.out.name}
        args.out.mkdir(parents=True, exist_ok=True)
        write_record(paths, members, args.out, shlex.join(["python", "average.py", *argv]))
        save_checkpoint(target, contents)
    except (EvaluationError, ModelError, OSError) as error:
        print(f"average.py: {line_of(error)}", file=sys.stderr)
        return 2
    print(f"{target}: the mean of {len(paths)} checkpoints – is it better? python evaluate.py {args.out} --split val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
