"""The mean of the weights of several checkpoints of one network, as one network ("model soup", Wortsman et al. 2022).

They must have one origin: epochs of one run, or runs that go on from one checkpoint (train.py --init). Networks of other
seeds have nothing in common that could be averaged; evaluate.py makes ensembles of those. With --train_meta the means and
variances of BatchNorm, which training took from augmented pictures, are measured anew on these rows as they are. Whether the
network is better for either, the validation rows say:

    python average.py runs/a/best.pth runs/a/last.pth --out runs/a_mean
    python average.py runs/a --train_meta metadata_train.parquet --out runs/a_measured
    python evaluate.py runs/a_mean --split val
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, BatchNorm2d
from torch.utils.data import RandomSampler
from tqdm import tqdm

from command_line import Parser, line_of
from evaluate import EvaluationError, check_belongs, split_of, write_record
from fer_transform import FERDataset, default_workers, make_loader
from metadata_parallel import MetadataError
from models import (
    Checkpoint,
    ModelError,
    autocast,
    checkpoint_path,
    choose_device,
    choose_precision,
    load_checkpoint,
    memory_format,
    save_checkpoint,
    versions,
    voted,
)
from onnx_network import is_onnx

BATCH_SIZE = 256  # of whose means and variances the mean is taken
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
    shared["voted"] = any(voted(member) for member in members)
    return shared | {"versions": versions(), "state_dict": {key: mean(key, value) for key, value in states[0].items()}}


@torch.no_grad()
def measure(network: Checkpoint, dataset: FERDataset, device: torch.device) -> None:
    """Measure BatchNorm's means and variances anew on a dataset's pictures; what else differs in training (dropout,
    stochastic depth) is off, as when it is used. But for that, `torch.optim.swa_utils.update_bn` (Izmailov et al. 2018).

    Raises ModelError for a network without BatchNorm.
    """
    layers = [layer for layer in network.model.modules() if isinstance(layer, BatchNorm1d | BatchNorm2d)]
    if not layers:
        raise ModelError("this network has no BatchNorm to measure – leave --train_meta out")
    if len(dataset) < 2:
        raise ModelError("one picture has no variance – give the parquet of all training rows")
    # In an order drawn, as rows may lie by class, and a batch of one class varies less than the rows do.
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
    loader = make_loader(dataset, batch_size=BATCH_SIZE, workers=default_workers(device), device=device, sampler=sampler)
    precision = choose_precision(device)[0]
    model = network.model.to(device).to(memory_format=memory_format(device))  # type: ignore[call-overload]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches, not a running one
        layer.train()
    for images, *_ in tqdm(loader, desc="measuring", unit="batch", leave=False, disable=None):
        with autocast(device, precision):
            model(images.to(device, memory_format=memory_format(device)))
    model.eval().cpu()


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="checkpoints or run folders (best.pth)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new network: best.pth and its record")
    parser.add_argument(
        "--train_meta", "--train-meta", type=Path, metavar="PARQUET",
        help="measure BatchNorm's means and variances on these rows, un-augmented",
    )  # fmt: skip
    parser.add_argument("--data_root", "--data-root", help="folder of the pictures, where it has moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
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
        if len({path.resolve() for path in paths}) < (len(paths) if args.train_meta else max(2, len(paths))):
            raise ModelError("a mean wants two checkpoints or more, each named once")
        if args.train_meta is None and (args.data_root is not None or args.device != "auto"):
            raise ModelError("--data_root and --device do nothing here – add --train_meta PARQUET")
        if onnx := [path for path in paths if is_onnx(path)]:
            raise ModelError(f"{onnx[0]} is an ONNX file – give checkpoints: best.pth")
        members = [load_checkpoint(path) for path in paths]
        contents = average(members, paths) | {"exp": args.out.name}
        made = [f"the mean of {len(paths)} checkpoints"] if len(paths) > 1 else []
        if args.train_meta is not None:
            made.append(f"BatchNorm measured on {args.train_meta}")
            split_of(args.train_meta, "train")
            check_belongs(members[0], paths[0], args.train_meta, cross_dataset=False)
            network, device = members[0], choose_device(args.device)
            network.model.load_state_dict(contents["state_dict"])
            dataset = FERDataset(
                args.train_meta, labels=network.labels, preprocess=network.preprocess, data_root=args.data_root
            )
            measure(network, dataset, device)
            contents["state_dict"] = network.model.state_dict()
        args.out.mkdir(parents=True, exist_ok=True)
        write_record(paths, members, args.out, shlex.join(["python", "average.py", *argv]), made=True)
        save_checkpoint(target, contents)
    except (EvaluationError, MetadataError, ModelError, OSError) as error:
        print(f"average.py: {line_of(error)}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("average.py: out of memory – give --device cpu", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\naverage.py: interrupted", file=sys.stderr)
        return 130
    print(f"{target}: {', '.join(made)} – is it better? python evaluate.py {args.out} --split val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
