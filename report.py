"""From run folders to results/<exp>/, and from there to RESULTS.md.

Named runs are copied first: what is to be kept of them, and no picture of a face. RESULTS.md and results/study/ are then
written from results/ alone, so a fresh clone reproduces them to the byte.

    python report.py runs/E0_seed42        # keep this run, and write RESULTS.md
    python report.py                       # write RESULTS.md again
"""

import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import study
from command_line import Parser, line_of
from evaluate import write_text
from labels import LABEL_SETS
from recipes import BASE, DOCUMENTED

PICTURES = (  # without misclassified.png: it shows faces
    "confusion_matrix.png",
    "misclassification_heatmap.png",
    "confusion_residuals.png",
    "per_class.png",
    "affect_scatter.png",
    "affect_plane.png",
    "training_history.png",
)
OF_ONE_SPLIT = ("metrics.json", "classification_report.txt", *PICTURES[:-1])
KEPT = ("run.json", "history.jsonl", "metrics_val.json", "metrics_test.json", *OF_ONE_SPLIT, "training_history.png")
REQUIRED = ("run.json", "history.jsonl", "metrics.json")

# Of metrics.json: what runs of one variant also share, besides their settings.
OF_ONE_VARIANT = ("members", "parameters", "split_id")

# The classes that a label set's networks find hardest, by the document of each.
TOUGH = {
    "fer7": ("f1_disgust", "f1_fear", "recall_fear"),
    "fer4": ("f1_angry",),
    "affectnet8": ("f1_contempt", "f1_disgust"),
    "ferplus8": ("f1_contempt", "f1_disgust"),
}

BESIDE = ("plain", "unseen")  # ends of the keys of figures that stand beside accuracy and macro F1

HEAD = """# Results

Written by `make report` from the files under `results/`; no figure of ours is typed by hand (published ones stand in
`recipes.py`). Networks are trained on the training split, and whatever is chosen (epoch, temperature, adjustment) is chosen
on the validation split (FER2013: PublicTest), nothing on the test split (FER2013: PrivateTest). Intervals are 95% (Wilson),
for the sampling of test rows alone. Figures marked (val) are of the rows on which the epoch was chosen, which favours them:
they do not compare with those of a test split.
"""


class ReportError(Exception):
    """A run that cannot be kept; the message is one line and says what to do next."""


def keep_run(run: Path, target: Path) -> None:
    """Copy what is to be kept of a run folder to `target`. Raises ReportError where something is lacking or damaged."""
    missing = [name for name in REQUIRED if not (run / name).is_file()]
    if missing and (run / "metrics.json").is_file():
        raise ReportError(f"{run} holds figures without {missing[0]}: only what has the record of its training can be kept")
    if missing:
        raise ReportError(
            f"{run} lacks {', '.join(missing)} – give a run folder, and score it first: python evaluate.py {run} "
            "(--split val where the test split is to be left alone)"
        )
    try:
        quoted = quoted_split(run)
        contents = without_machine_paths(json.loads((run / "run.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or not what is written there
        raise ReportError(f"{run} holds a damaged file ({error}) – score it again: python evaluate.py {run}") from error
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        # What evaluate.py writes for the split scored last is taken of the split that is quoted.
        source = run / (name if name not in OF_ONE_SPLIT else name.replace(".", f"_{quoted}."))
        if name == "run.json":
            write_text(target / name, json.dumps(contents, indent=2) + "\n")
        elif source.is_file():
            shutil.copyfile(source, target / name)
        else:
            (target / name).unlink(missing_ok=True)


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

    def cut_teachers(record: dict[str, Any]) -> dict[str, Any]:
        teachers = [teacher | {"path": portable(teacher["path"])} for teacher in record.get("teachers", [])]
        return {"teachers": teachers} if teachers else {}

    settings = {key: portable(value) if isinstance(value, str) else value for key, value in run["args"].items()}
    more: dict[str, Any] = {"resumed": [cut(command) for command in run["resumed"]]} if "resumed" in run else {}
    more |= {"scored": cut(run["scored"])} if "scored" in run else {}
    if "members" in run:
        more["members"] = [
            member
            | {"command": cut(member["command"]), "resumed": [cut(command) for command in member["resumed"]]}
            | cut_teachers(member)
            for member in run["members"]
        ]
    return run | {"command": cut(run["command"]), "args": settings} | cut_teachers(run) | more


def portable(text: str) -> str:
    """An absolute path below the current folder as a relative one, any other cut to its name, that of a run's checkpoint to
    its last two; other text as it is."""
    if "," in text:  # --teacher's networks
        return ",".join(portable(part) for part in text.split(","))
    if not (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()):
        return text
    if Path(text).is_relative_to(Path.cwd()):
        return Path(text).relative_to(Path.cwd()).as_posix()
    path = PureWindowsPath(text)  # knows both kinds of slash
    return f"{path.parent.name}/{path.name}" if path.name in (*study.BEST_NETWORKS, "last.pth") else path.name or "."


def read_result(folder: Path) -> dict[str, Any]:
    """The figures of a kept run: those of the test split where it was scored, with `run` and `history` beside them.

    Raises ReportError where a file is lacking or damaged.
    """
    again = f"keep that run again: python report.py runs/{folder.name}"
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise ReportError(f"{folder} lacks {', '.join(missing)} – {again}")
    try:
        text = {name: (folder / name).read_text(encoding="utf-8") for name in REQUIRED}
        values = json.loads(text["metrics.json"])
        values["run"] = json.loads(text["run.json"])
        values["history"] = [json.loads(line) for line in text["history.jsonl"].splitlines()]
    except (ValueError, TypeError) as error:
        raise ReportError(f"{folder} holds a damaged file ({error}) – {again}") from error
    return values


def check_alike(groups: Sequence[study.Group]) -> None:
    """Refuse a mean over seeds of figures of different settings, splits, label sets, or scored in other ways.

    Raises ReportError.
    """
    for group in groups:
        first_run = group.runs[0]
        for run in group.runs:
            one = "they are not one variant – rename its folder under runs/ and results/"
            for key in OF_ONE_VARIANT:
                if run.values.get(key) != first_run.values.get(key):
                    theirs = f"{first_run.name} {first_run.values.get(key)}"
                    raise ReportError(f"{run.name} has {key} {run.values.get(key)}, {theirs}: {one}")
            if run.averaged != first_run.averaged:
                raise ReportError(f"of {run.name} and {first_run.name} one is a mean of weights: {one}")
            if len(run.phases) != len(first_run.phases):
                raise ReportError(f"of {run.name} and {first_run.name} one goes on from another kept run: {one}")
            for phase, first_phase in zip(run.phases, first_run.phases, strict=True):
                for setting, value in study.differing(BASE | phase.settings, first_phase.settings).items():
                    theirs = (BASE | first_phase.settings)[setting]
                    raise ReportError(
                        f"{phase.name} was trained with --{setting} {value}, {first_phase.name} with {theirs}: {one}"
                    )
        for run, after in pairwise(group.runs):
            if run.seed is not None and run.seed == after.seed:
                raise ReportError(
                    f"{run.name} and {after.name} are one variant with one seed – keep one of them in results/"
                )
        scored = {
            run.name: ", ".join(
                [run.values["label_set"], run.values["split"]]
                + ["logits adjusted"] * (run.values.get("logit_adjust") is not None)
                + [f"mean of {views} views" for views in [run.values.get("views")] if views]
            )
            for run in group.runs
        }
        first, *others = scored
        for other in others:
            if scored[other] != scored[first]:
                raise ReportError(
                    f"{first} is scored on {scored[first]}, {other} on {scored[other]}: no mean – score both alike, then "
                    f"keep them again: python evaluate.py runs/{other} --split test && python report.py runs/{other}"
                )


def figure(value: float | None, digits: int = 3) -> str:
    """A score as text; an undefined one is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def machine_of(values: dict[str, Any]) -> str:
    """What a run, or the members of one, was trained on, and in which precision."""
    said = []
    for run in [values["run"], *values["run"].get("members", [])]:
        for machine in [*run.get("earlier_machines", []), run["machine"]]:
            threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
            where = machine["device"] if machine["device"] != "cpu" else f"{threads} of {machine['processor']}"
            said.append(f"{where}, {machine['precision'].split(',')[0]}")
    return " and ".join(dict.fromkeys(said))


# Every documented system beside its own figures


def said(value: float | tuple[float, float] | None) -> str:
    """A document's figure as it states it, to two or three decimals; a pair is a range."""
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return "–".join(said(end) for end in value)
    return f"{value:.3f}".removesuffix("0")


def score_name(key: str) -> str:
    """`f1_disgust` as people say it: disgust F1."""
    kind, _, label = key.partition("_")
    return f"{label} {'F1' if kind == 'f1' else kind}"


def comparison(groups: Sequence[study.Group], link: str) -> str:
    """One row a system: what its document says, and what its runs reach here; below, notes and the commands.

    `link` is the way to the kept runs.
    """
    rows, commands = [], []
    notes: list[str] = []
    for group in groups:
        document = DOCUMENTED.get(group.name)
        figures = document.figures if document else {}
        tough = [key for key in figures if key not in ("accuracy", "macro_f1")]
        overall = f"{said(figures.get('accuracy'))} / {said(figures.get('macro_f1'))}" if figures else "–"
        theirs = ", ".join([overall, *(f"{score_name(key)} {said(figures[key])}" for key in tough)])
        if document and document.note:
            notes.append(f"<sup>{len(notes) + 1}</sup> {group.name}: {document.note}.\n")
            theirs += f"<sup>{len(notes)}</sup>"
        first = group.runs[0]
        keys = dict.fromkeys([*TOUGH.get(first.values["label_set"], ()), *tough])
        ours = [f"{score_name(key)} {figure(group.mean(key))}" for key in keys if group.mean(key) is not None]
        split = "" if first.values["split"] == "test" else f" ({first.values['split']})"
        other_name = f" ({group.system})" if group.system != group.name else ""
        system = f" {group.system}" if document else other_name
        machines = "; ".join(dict.fromkeys(machine_of(phase.values) for run in group.runs for phase in run.phases))
        rows.append(
            [
                f"[{group.name}]({link}/{first.name}){system}",
                theirs,
                f"**{study.plus_minus(group, 'accuracy')}**{split}",
                f"**{study.plus_minus(group, 'macro_f1')}**{split}",
                ", ".join(ours) or "–",
                ", ".join(f"[{'–' if run.seed is None else run.seed}]({link}/{run.name})" for run in group.runs),
                study.chosen_epochs(group),
                f"{statistics.fmean(run.minutes for run in group.runs):.0f} min, {machines}",
            ]
        )
        typed = ", then ".join(f"`{command}`" for command in first.commands)
        commands.append(f"- {group.name}: {typed}\n")
    header = ["system", "published: accuracy / macro F1", "accuracy", "macro F1", "tough classes"]
    lacking = [name for name in DOCUMENTED if name not in {group.name for group in groups}]
    return "\n".join(
        [
            "## Every documented system beside its own figures\n",
            "Means over the seeds ± their sample standard deviation, on the test split unless another is named. Each seed\n"
            "leads to its run; minutes are those of one run, earlier phases and all members included.\n",
            table([*header, "seeds", "chosen epochs", "time of a run"], rows),
            *notes,
            *([f"Not among the kept runs yet: {', '.join(lacking)}.\n"] if lacking else []),
            "The commands, of the lowest seed:\n",
            "".join(commands),
        ]
    )


# The study


def write_study(groups: Sequence[study.Group], folder: Path) -> list[str]:
    """Write the tables and pictures of the study into `folder`; returns the names of the pictures, none without a variant.

    Pictures of an earlier report that there is nothing to draw for are removed.
    """
    if not groups:
        return []
    write_text(folder / "study.csv", study.study_csv(groups))
    write_text(folder / "study.tex", study.study_tex(groups))
    names = ["study_f1.png"]
    study.plot_study_f1(groups, folder / "study_f1.png")
    if study.plot_study_confusion(groups, folder / "study_confusion.png"):
        names.append("study_confusion.png")
    else:
        (folder / "study_confusion.png").unlink(missing_ok=True)
    return names


def study_part(pictures: Sequence[str], link: str) -> str:
    """The study's part of RESULTS.md: where its tables are, and its pictures; `link` is the way to its folder."""
    parts = [
        "## The imbalance study\n",
        "Every variant of the light CNN on FER2013, mean and sample standard deviation over seeds; seeds differ by about a\n"
        "point, so a variant of one run is not to be told from another by less:\n"
        f"[as CSV]({link}/study.csv), [for LaTeX]({link}/study.tex).\n",
    ]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({link}/{name})\n" for name in pictures]
    return "\n".join(parts)


# Every run


def overview(results: dict[str, dict[str, Any]], link: str) -> str:
    """One row a run: the overall scores and what they cost; `link` is the way to the kept runs."""
    rows = []
    for exp, values in results.items():
        minutes = sum(line["time_s"] for line in values["history"]) / 60
        rows.append(
            [
                f"[{exp}]({link}/{exp})",
                values["model"],
                f"{values['label_set']}, {values['split']}, {values['rows']:,} rows{study.scored_how([values])}",
                f"**{figure(values['accuracy'])}** ({figure(values['accuracy_low'])} to {figure(values['accuracy_high'])})",
                f"**{figure(values['macro_f1'])}**",
                study.chosen_epochs(study.Group(exp, (study.Run(exp, values),))),
                f"{minutes:.0f} min, {machine_of(values)}",
            ]
        )
    return table(["run", "network", "scored on", "accuracy", "macro F1", "epoch", "training"], rows)


def per_class(results: dict[str, dict[str, Any]]) -> str:
    """F1 of every class, one row a run, one table a label set."""
    parts = []
    for name, label_set in LABEL_SETS.items():
        chosen = {exp: values for exp, values in results.items() if values["label_set"] == name}
        if chosen:
            rows = [
                [exp, *(figure(values.get(f"f1_{label}")) for label in label_set.names)] for exp, values in chosen.items()
            ]
            parts.append(f"F1 by class, {name}:\n\n" + table(["run", *label_set.names], rows))
    return "\n".join(parts)


def beside_table(results: dict[str, dict[str, Any]]) -> str:
    """What stands beside the figures: of the runs that have it the plain view and pictures seen before; calibration."""
    rows = []
    for exp, values in results.items():
        pairs = [f"{figure(values.get(f'accuracy_{key}'))} / {figure(values.get(f'macro_f1_{key}'))}" for key in BESIDE]
        errors = [values.get(f"expected_calibration_error{key}") for key in ("_uncalibrated", "")]
        if any(error is not None for error in errors):
            seen = f" ({values['rows_seen']} fewer)" if "rows_seen" in values else ""
            rows.append([exp, pairs[0], pairs[1] + seen, *map(figure, errors), figure(values.get("temperature"))])
    header = ["run", "one view", "without pictures of the training", "ECE before the temperature", "ECE", "temperature"]
    return "\nAccuracy / macro F1 beside those above, and calibration:\n\n" + table(header, rows) if rows else ""


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
    """One run, folded: its command, further scores, and its pictures, which lie in `folder` below `link`."""
    typed = "\n".join(study.Run(exp, values).commands)
    parts = [f"<details><summary>{exp}</summary>\n", f"```\n{typed}\n```\n"]
    scores = (
        ("balanced accuracy", "balanced_accuracy"),
        ("Cohen's κ", "cohen_kappa"),
        ("Krippendorff's α", "krippendorff_alpha"),
        ("ROC-AUC", "roc_auc_macro"),
        ("PR-AUC", "pr_auc_macro"),
        ("expected calibration error", "expected_calibration_error"),
    )
    parts.append(", ".join(f"{name} {figure(values.get(key))}" for name, key in scores) + ".\n")
    for name in PICTURES:
        if (folder / name).is_file():
            parts.append(f"![{name.removesuffix('.png').replace('_', ' ')} of {exp}]({link}/{exp}/{name})\n")
    return "\n".join([*parts, "</details>\n"])


def write_results(results: Path, out: Path) -> int:
    """Write RESULTS.md, and the study into results/study/, from results/; returns the number of runs. Raises ReportError."""
    folders = [path for path in sorted(results.glob("*")) if any((path / name).is_file() for name in REQUIRED)]
    kept = {folder.name: read_result(folder) for folder in folders}
    if not kept:
        raise ReportError(f"no run is kept in {results}/ – keep one: python report.py runs/NAME")
    link = Path(os.path.relpath(results, out.parent)).as_posix()
    groups = study.grouped(kept)
    check_alike(groups)
    parts = [HEAD]
    parts.append(comparison(study.systems(groups), link))
    if pictures := write_study(study.variants(groups), results / "study"):
        parts.append(study_part(pictures, f"{link}/study"))
    parts += ["## Every run\n", overview(kept, link), per_class(kept) + beside_table(kept) + affect_table(kept)]
    parts += ["## Details of each run\n", *(details(exp, values, results / exp, link) for exp, values in kept.items())]
    write_text(out, "\n".join(parts))
    return len(kept)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders to keep")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("RESULTS.md"), help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Keep the named runs and write RESULTS.md; status 2 with one line, and none kept anew, where that cannot be done."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as before:
        new: list[Path] = []
        done = False
        try:
            for run in args.runs:
                target = args.results / run.resolve().name
                if target in new:
                    raise ReportError(f"two runs are called {target.name} – keep them one by one, under names of their own")
                if target.is_dir():
                    shutil.copytree(target, Path(before) / target.name)
                new.append(target)
                keep_run(run, target)
            count = write_results(args.results, args.out)
            done = True
        except (ReportError, OSError) as error:
            print(f"report.py: {line_of(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("report.py: interrupted; results are as they were", file=sys.stderr)
            return 130
        finally:
            for folder in [] if done else new:  # as it was, or no report could be written
                shutil.rmtree(folder, ignore_errors=True)
                if (Path(before) / folder.name).is_dir():
                    shutil.copytree(Path(before) / folder.name, folder, dirs_exist_ok=True)
    print("".join(f"kept: {folder}\n" for folder in new) + f"{args.out}: runs in it: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
