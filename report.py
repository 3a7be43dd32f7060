"""From run folders to results/<exp>/, and from there to RESULTS.md.

Named runs are copied first: what is to be kept of them, and no picture of a face. RESULTS.md is then written from results/
alone, so a fresh clone reproduces it to the byte.

    python report.py runs/E0_seed42        # keep this run, and write RESULTS.md
    python report.py                       # write RESULTS.md again
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from evaluate import write_text
from labels import LABEL_SETS

KEPT = (
    "run.json",
    "history.jsonl",
    "metrics.json",
    "metrics_val.json",
    "metrics_test.json",
    "classification_report.txt",
    "confusion_matrix.png",
    "training_history.png",
)
OF_ONE_SPLIT = ("metrics.json", "classification_report.txt", "confusion_matrix.png")
REQUIRED = ("run.json", "history.jsonl", "metrics.json")

HEAD = """# Results

Written by `make report` from the files under `results/`; no figure here is typed by hand. Networks are trained on the
training split, their epoch is chosen on the validation split (FER2013: PublicTest), and the test split (FER2013:
PrivateTest) is scored once with the chosen checkpoint. Intervals are 95% (Wilson), for the sampling of test rows alone.
"""


class ReportError(Exception):
    """A run that cannot be kept; the message is one line and says what to do next."""


def keep_run(run: Path, results: Path) -> Path:
    """Copy what is to be kept of a run folder to results/<its name>. Raises ReportError where something is lacking."""
    missing = [name for name in REQUIRED if not (run / name).is_file()]
    if missing:
        raise ReportError(
            f"{run} lacks {', '.join(missing)} – give a run folder, and score it first: python evaluate.py {run} "
            "(an ensemble has no training to keep)"
        )
    quoted = quoted_split(run)
    target = results / run.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        # What evaluate.py writes for the split scored last is taken of the split that is quoted.
        source = run / (name if name not in OF_ONE_SPLIT else name.replace(".", f"_{quoted}."))
        if name == "run.json":
            contents = without_machine_paths(json.loads(source.read_text(encoding="utf-8")))
            write_text(target / name, json.dumps(contents, indent=2) + "\n")
        elif source.is_file():
            shutil.copyfile(source, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    return target


def quoted_split(folder: Path) -> str:
    """The split whose figures stand for a run: test where it was scored, else the one scored last."""
    if (folder / "metrics_test.json").is_file():
        return "test"
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["split"]


def without_machine_paths(run: dict[str, Any]) -> dict[str, Any]:
    """The contents of run.json without folders of one machine, in its settings and its command."""

    def cut(command: str) -> str:
        words = [word.rpartition("=") for word in shlex.split(command)]  # --flag=path, too
        return shlex.join(flag + equals + portable(value) for flag, equals, value in words)

    settings = {key: portable(value) if isinstance(value, str) else value for key, value in run["args"].items()}
    resumed = {"resumed": [cut(command) for command in run["resumed"]]} if "resumed" in run else {}
    return run | {"command": cut(run["command"]), "args": settings} | resumed


def portable(text: str) -> str:
    """An absolute path below the current folder as a relative one, any other cut to its name; other text as it is."""
    if not (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()):
        return text
    if Path(text).is_relative_to(Path.cwd()):
        return Path(text).relative_to(Path.cwd()).as_posix()
    return PureWindowsPath(text).name or "."  # knows both kinds of slash


def read_result(folder: Path) -> dict[str, Any]:
    """The figures of a kept run: those of the test split where it was scored, with `run` and `history` beside them.

    Raises ReportError where a file is lacking.
    """
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise ReportError(f"{folder} lacks {', '.join(missing)} – keep that run again: python report.py runs/{folder.name}")
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    values["run"] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    values["history"] = [json.loads(line) for line in lines]
    return values


def figure(value: float | None, digits: int = 3) -> str:
    """A score as text; an undefined one is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def overview(results: dict[str, dict[str, Any]], link: str) -> str:
    """One row a run: the overall scores and what they cost; `link` is the way to the kept runs."""
    rows = []
    for exp, values in results.items():
        minutes = sum(line["time_s"] for line in values["history"]) / 60
        machine = values["run"]["machine"]
        where = (
            machine["device"] if machine["device"] != "cpu" else f"{machine['threads']} threads of {machine['processor']}"
        )
        rows.append(
            [
                f"[{exp}]({link}/{exp})",
                values["model"],
                f"{values['label_set']}, {values['split']}, {values['rows']:,} rows",
                f"**{figure(values['accuracy'])}** ({figure(values['accuracy_low'])} to {figure(values['accuracy_high'])})",
                f"**{figure(values['macro_f1'])}**",
                f"{values['epoch']} of {len(values['history'])}",
                f"{minutes:.0f} min, {where}, {machine['precision'].split(',')[0]}",
            ]
        )
    return table(["run", "network", "scored on", "accuracy", "macro F1", "epoch", "training"], rows)


def per_class(results: dict[str, dict[str, Any]]) -> str:
    """F1 of every class, one row a run, one table a label set."""
    parts = []
    for name, label_set in LABEL_SETS.items():
        chosen = {exp: values for exp, values in results.items() if values["label_set"] == name}
        if chosen:
            rows = [[exp, *(figure(values[f"f1_{label}"]) for label in label_set.names)] for exp, values in chosen.items()]
            parts.append(f"F1 by class, {name}:\n\n" + table(["run", *label_set.names], rows))
    return "\n".join(parts)


def affect_table(results: dict[str, dict[str, Any]]) -> str:
    """Valence and arousal of the runs that have them, with the trivial baseline; empty where none has."""
    rows = []
    for exp, values in results.items():
        for target in ("valence", "arousal"):
            if values.get(f"{target}_rmse") is not None:
                scores = [figure(values[f"{target}_{kind}"]) for kind in ("rmse", "mae", "pearson", "sagr", "ccc")]
                rows.append([exp, target, *scores, figure(values[f"baseline_{target}_rmse_mean"])])
    header = ["run", "", "RMSE", "MAE", "Pearson", "SAGR", "CCC", "RMSE of always the mean"]
    return "\nValence and arousal:\n\n" + table(header, rows) if rows else ""


def details(exp: str, values: dict[str, Any], folder: Path, link: str) -> str:
    """One run: its command, further scores, and its pictures, which lie in `folder` below `link`."""
    parts = [f"\n## {exp}\n", f"```\n{values['run']['command']}\n```\n"]
    scores = (
        ("balanced accuracy", "balanced_accuracy"),
        ("Cohen's κ", "cohen_kappa"),
        ("Krippendorff's α", "krippendorff_alpha"),
        ("ROC-AUC", "roc_auc_macro"),
        ("PR-AUC", "pr_auc_macro"),
        ("expected calibration error", "expected_calibration_error"),
    )
    parts.append(", ".join(f"{name} {figure(values[key])}" for name, key in scores) + ".\n")
    for name in ("confusion_matrix.png", "training_history.png"):
        if (folder / name).is_file():
            parts.append(f"![{name.removesuffix('.png').replace('_', ' ')} of {exp}]({link}/{exp}/{name})\n")
    return "\n".join(parts)


def write_results(results: Path, out: Path) -> int:
    """Write RESULTS.md from results/; returns the number of runs in it. Raises ReportError."""
    kept = {folder.name: read_result(folder) for folder in sorted(results.glob("*")) if (folder / "metrics.json").is_file()}
    link = Path(os.path.relpath(results, out.parent)).as_posix()
    parts = [HEAD]
    if kept:
        parts += [overview(kept, link), per_class(kept) + affect_table(kept)]
        parts += [details(exp, values, results / exp, link) for exp, values in kept.items()]
    else:
        parts.append("No run is kept yet: `python report.py runs/<exp>`.\n")
    write_text(out, "\n".join(parts))
    return len(kept)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders to keep")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("RESULTS.md"), help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Keep the named runs and write RESULTS.md; status 2 with one line where a run cannot be kept."""
    args = build_parser().parse_args(argv)
    try:
        for run in args.runs:
            print(f"kept: {keep_run(run, args.results)}")
        print(f"{args.out}: runs in it: {write_results(args.results, args.out)}")
    except (ReportError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
