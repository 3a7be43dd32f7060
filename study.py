"""Figures across runs: which runs are one variant under several seeds, their mean and spread, and the imbalance study.

The study compares ways of training one light CNN on FER2013: a CSV, a LaTeX table and two pictures of all its variants.
`report.py` hands over what it read from results/, and writes the text that comes back.

    python -c "import study; print(study.group_of('E0_seed42'))"
"""

import csv
import io
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from figures import BLUE, ORANGE, draw_matrix, picture, shares_of_true_class
from labels import LABEL_SETS
from recipes import BASE, BEYOND, DOCUMENTED, RECIPES

LABELS = LABEL_SETS["fer7"]
MINORITY, MARKED = 0.10, "#FFF3D6"  # a class with a smaller share of the rows, and the ground of its panel
TABLE_COLUMNS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "f1_disgust": "Disgust F1", "f1_fear": "Fear F1"}
WITH_SPREAD = ("accuracy", "macro_f1")
BEST_NETWORKS = ("best.pth", "best.onnx", "best_half.onnx", "best_int8.onnx")  # of a run folder
LATEX_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


# Runs, and groups of them


# Settings that do not make a run another variant: where it was done and what it is called.
INCIDENTAL = {
    "seed", "exp", "runs", "resume", "recipe", "device", "workers", "amp", "print_recipe", "train_meta", "val_meta",
    "test_meta", "data_root", "init", "vggface2_ckpt", "save_path", "save_optimizer", "score_test",
}  # fmt: skip


def differing(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Of `settings`, those with another value in `others` that makes another variant of a run. What those lack, as they are
    older than the setting, has the value that changes nothing."""
    others = BASE | others
    shared = [key for key in settings if key in others and key not in INCIDENTAL]
    return {key: settings[key] for key in shared if settings[key] != others[key]}


@dataclass(frozen=True)
class Run:
    """A kept run: its folder's name, the contents of metrics.json with `run` (run.json) and `history` (a dict an epoch)
    beside them, and the kept runs whose networks it, or the members of an ensemble, started from."""

    name: str
    values: dict[str, Any]
    before: tuple["Run", ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed in its settings, else in its name, else None."""
        set_to, named = self.settings.get("seed"), re.search(r"_seed(\d+)$", self.name)
        return int(named[1]) if set_to is None and named else set_to

    @property
    def phases(self) -> tuple["Run", ...]:
        """The runs that led to this one, each once, the earliest first, and this one."""
        earlier = {phase.name: phase for run in self.before for phase in run.phases}
        return (*earlier.values(), self)

    @property
    def settings(self) -> dict[str, Any]:
        """What it was trained with."""
        return self.values["run"]["args"]

    @property
    def averaged(self) -> bool:
        """Whether its network is the mean of the weights of several checkpoints (average.py)."""
        return "members" in self.values["run"] and self.values.get("members", 1) == 1

    @property
    def chosen_epochs(self) -> str:
        """Phase by phase the chosen epoch of how many, where it has members, of each: "14 of 15 + 11 of 12; 9 of 12"."""
        return " + ".join(
            "; ".join(f"{member['epoch']} of {member['epochs']}" for member in members if "epoch" in member)
            if (members := phase.values["run"].get("members"))
            else f"{phase.values['epoch']} of {len(phase.values['history'])}"
            for phase in self.phases
        )

    @property
    def commands(self) -> list[str]:
        """What was typed: the trainings of its phases and members and what resumed them, then its scoring where that was no
        plain one."""
        trainings = [run for phase in self.phases for run in (*phase.values["run"].get("members", []), phase.values["run"])]
        trained = [command for run in trainings for command in (run["command"], *run.get("resumed", []))]
        return trained + ([self.values["run"]["scored"]] if "scored" in self.values["run"] else [])

    @property
    def minutes(self) -> float:
        """Wall time of the training in minutes, earlier phases or all members included."""
        return sum(line["time_s"] for phase in self.phases for line in phase.values["history"]) / 60


@dataclass(frozen=True)
class Group:
    """A variant: the runs that differ in nothing but their seed, the lowest seed first."""

    name: str
    runs: tuple[Run, ...]

    @property
    def system(self) -> str:
        """What it is called: by its document, else by its recipe, else by its network; then what differs, phase by phase,
        from the recipe of its name, else from its own, whether FER+'s votes were learnt, and how it was scored."""
        first, more = self.runs[0], ""
        for phase in first.phases if first.values.get("members", 1) == 1 else [first]:
            recipe = RECIPES.get(self.name if phase is first else "", RECIPES.get(phase.settings.get("recipe", "")))
            other = differing(phase.settings, recipe) if recipe else {}
            typed = " ".join(f"--{key} {value}" for key, value in other.items())
            more += f", {'here' if phase is first else phase.name} with {typed}" if other else ""
        # A mean of weights is of no one epoch.
        early = any((run.values["epoch"] or math.inf) < (run.settings.get("drw_epoch") or 0) for run in self.runs)
        more += ", chosen before its classes were weighted" if early else ""
        more += ", the mean of several checkpoints' weights" if self.runs[0].averaged else ""
        more += scored_how([run.values for run in self.runs])
        count = first.values.get("members", 1)
        if self.name in DOCUMENTED:
            called = DOCUMENTED[self.name].system + (f" ({count} members)" if count > 1 else "")
        else:
            called = f"ensemble of {count} " if count > 1 else ""
            trained_as = str(first.settings.get("recipe") or first.values["model"])
            called += BEYOND.get(trained_as, trained_as)
        learnt = first.settings.get("votes_weight") or first.settings.get("teacher") == "votes"
        voted = learnt or first.values["run"].get("voted")  # which records had not before they knew of it
        if voted and "FER+" not in called:
            called += ", with the FER+ votes of the training rows"
        return called + more

    def scores(self, key: str) -> list[float]:
        """A score of every run; empty where one of them lacks it, so that no seed is left out unsaid."""
        scores = [run.values.get(key) for run in self.runs]
        return [] if None in scores else [score for score in scores if score is not None]

    def mean(self, key: str) -> float | None:
        """Mean of a score over the runs; None where one of them lacks it."""
        scores = self.scores(key)
        return statistics.fmean(scores) if scores else None

    def std(self, key: str) -> float | None:
        """Sample standard deviation (n − 1) of a score over the runs; None for a single run or where one lacks it."""
        scores = self.scores(key)
        return statistics.stdev(scores) if len(scores) > 1 else None


def scored_how(scored: Sequence[dict[str, Any]]) -> str:
    """How one or several metrics.json were scored, as the end of a sentence, where that was no plain pass of the network:
    the strength of a logit adjustment, or its range, and the number of views; else empty."""
    taus = [values["logit_adjust"] for values in scored if values.get("logit_adjust") is not None]
    ends = " to ".join(f"{tau:g}" for tau in sorted({min(taus), max(taus)})) if taus else ""
    views = " or ".join(str(count) for count in sorted({values["views"] for values in scored if values.get("views")}))
    return (ends and f", logits adjusted by τ {ends}") + (views and f", mean of {views} views")


def group_of(name: str) -> str:
    """The name of a run without `_seedN` at its end."""
    return re.sub(r"_seed\d+$", "", name)


def grouped(results: dict[str, dict[str, Any]]) -> list[Group]:
    """The runs by group, in the order of the documents, then by name.

    `results` maps the name of a run to its metrics.json with `run` and `history` beside the scores.
    """
    members: dict[str, list[Run]] = {}
    kept_as = {Run(name, values).settings.get("exp") or name: name for name, values in results.items()}
    kept_as |= {name: name for name in results}
    for name in results:
        members.setdefault(group_of(name), []).append(_run(name, results, kept_as))
    order = {name: place for place, name in enumerate(DOCUMENTED)}
    groups = [
        Group(name, tuple(sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.name))))
        for name, runs in members.items()
    ]
    return sorted(groups, key=lambda group: (order.get(group.name, len(order)), group.name))


def _start(path: str | None) -> str:
    """The name of the run whose best network a path is: in a run folder, exported or not, or shipped as weights/NAME."""
    file = PureWindowsPath(path or "")  # knows both kinds of slash
    if file.name in BEST_NETWORKS:
        return file.parent.name
    return file.stem if file.parent.name == "weights" else ""


def _run(name: str, results: dict[str, dict[str, Any]], kept_as: dict[str, str], after: tuple[str, ...] = ()) -> Run:
    """A run with the kept ones that it goes on from: those whose best network is its `--init` or plays VGGFace2's weights,
    and of an ensemble those that its members, where these are kept, go on from. `kept_as` says under which name a run is
    kept that was trained under another. What the record says of the network's training goes before its path, under which
    another may lie by now."""
    run = Run(name, results[name])
    named = _start(run.settings.get("init")) or _start(run.settings.get("vggface2_ckpt"))
    after = (name, *after)

    def kept_run(trained: str) -> tuple[Run, ...]:
        kept = kept_as.get(trained, "")
        return (_run(kept, results, kept_as, after),) if kept and kept not in after else ()

    before = kept_run(run.values["run"].get("init_exp", named))
    if run.values.get("members", 1) > 1:
        members = [member["name"] for member in run.values["run"].get("members", [])]
        before += tuple(earlier for member in members for own in kept_run(member) for earlier in own.before)
    return replace(run, before=before)


def systems(groups: Sequence[Group]) -> list[Group]:
    """The groups that stand for themselves: without those of no document whose every run is a phase of another."""
    earlier = {phase.name for group in groups for run in group.runs for phase in run.phases[:-1]}
    return [group for group in groups if group.name in DOCUMENTED or not {run.name for run in group.runs} <= earlier]


def variants(groups: Sequence[Group]) -> list[Group]:
    """The groups of the study: one light CNN on the seven classes of FER2013, scored on the test split by one view, on the
    rows on which the first of them was."""
    wanted = {"model": "lightcnn", "label_set": LABELS.name, "split": "test"}

    def belongs(run: Run) -> bool:
        plain = run.values.get("members", 1) == 1 and not run.averaged and "views" not in run.values
        return plain and wanted.items() <= run.values.items()

    found = [group for group in groups if all(belongs(run) for run in group.runs)]
    split_ids = [group.runs[0].values.get("split_id") for group in found]
    return [group for group, split_id in zip(found, split_ids, strict=True) if split_id == split_ids[0]]


# Tables


def plus_minus(group: Group, key: str, *, sign: str = "±", undefined: str = "–") -> str:
    """A score of a group as text: mean and standard deviation, the mean alone for a single run."""
    mean, std = group.mean(key), group.std(key)
    if mean is None:
        return undefined
    return f"{mean:.3f}" if std is None else f"{mean:.3f} {sign} {std:.3f}"


def chosen_epochs(group: Group) -> str:
    """The chosen epochs of the runs of how many, phase by phase: "23, 28, 28 of 30", "14 of 15 + 11 of 12"."""
    lengths = {tuple(len(phase.values["history"]) for phase in run.phases) for run in group.runs}
    members = any("members" in phase.values["run"] for run in group.runs for phase in run.phases)
    if members or len(lengths) > 1:  # each run by itself
        return "; ".join(run.chosen_epochs for run in group.runs)
    chosen = zip(*([str(phase.values["epoch"]) for phase in run.phases] for run in group.runs), strict=True)
    return " + ".join(f"{', '.join(epochs)} of {length}" for epochs, length in zip(chosen, lengths.pop(), strict=True))


def best_shown(groups: Sequence[Group], key: str) -> float | None:
    """The highest mean of a score, rounded as it is shown, to three decimals; None where no group has one."""
    means = [mean for group in groups if (mean := group.mean(key)) is not None]
    return round(max(means), 3) if means else None


def study_csv(groups: Sequence[Group]) -> str:
    """The study as CSV, one line a group; scores with six decimals, empty where undefined or of a single run."""
    scores = [f"{key}_{kind}" for key in ("accuracy", "macro_f1") for kind in ("mean", "std")]
    scores += [f"f1_{label}_mean" for label in LABELS.names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "system", "seeds", "runs", *scores, "epochs", "minutes_mean"])
    for group in groups:
        cells = []
        for column in scores:
            key, _, kind = column.rpartition("_")
            value = group.mean(key) if kind == "mean" else group.std(key)
            cells.append("" if value is None else f"{value:.6f}")
        seeds = ";".join("" if run.seed is None else str(run.seed) for run in group.runs)
        lengths = {sum(len(phase.values["history"]) for phase in run.phases) for run in group.runs}
        epochs = ";".join(map(str, sorted(lengths)))
        minutes = statistics.fmean(run.minutes for run in group.runs)
        writer.writerow([group.name, group.system, seeds, len(group.runs), *cells, epochs, f"{minutes:.2f}"])
    return text.getvalue()


def latex(text: str) -> str:
    """Text with the characters escaped that LaTeX reads as commands."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def study_tex(groups: Sequence[Group]) -> str:
    r"""The study as a LaTeX tabular, which needs \usepackage{booktabs}; the best mean of each column is bold, as shown.

    A line between the variants of the document and those beyond it; what each one is stands in a comment beside its row.
    """
    best = {key: best_shown(groups, key) for key in TABLE_COLUMNS}
    lines = [
        "% Generated by: python report.py (from results/ alone; do not edit). Needs \\usepackage{booktabs}.",
        "% FER2013 PrivateTest; mean and sample standard deviation over the runs (seeds), the best of each column bold.",
        f"\\begin{{tabular}}{{lc{'c' * len(TABLE_COLUMNS)}}}",
        "\\toprule",
        " & ".join(["Variant", "Runs", *TABLE_COLUMNS.values()]) + " \\\\",
    ]
    for place, group in enumerate(groups):
        if place == 0 or (group.name in DOCUMENTED) != (groups[place - 1].name in DOCUMENTED):
            lines.append("\\midrule")
        cells = [latex(group.name), str(len(group.runs))]
        for key in TABLE_COLUMNS:
            mean = group.mean(key)
            text = "--" if mean is None else f"{mean:.3f}"
            if key in WITH_SPREAD:
                text = plus_minus(group, key, sign="$\\pm$", undefined="--")
            cells.append(f"\\textbf{{{text}}}" if mean is not None and round(mean, 3) == best[key] else text)
        seeds = ", ".join("?" if run.seed is None else str(run.seed) for run in group.runs)
        lines.append(f"{' & '.join(cells)} \\\\ % {group.system}; seeds: {seeds}")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


# Pictures


def confusions(group: Group) -> list[np.ndarray]:
    """Rows of each true class predicted as each class, (C, C), of those runs of a group that hold them."""
    return [np.array(run.values["confusion"]) for run in group.runs if "confusion" in run.values]


def best_variant(groups: Sequence[Group]) -> Group | None:
    """The group with the highest mean macro F1, of equal ones the first; None where none has one."""
    scored = [group for group in groups if group.mean("macro_f1") is not None]
    return max(scored, key=lambda group: group.mean("macro_f1") or 0.0, default=None)


def class_shares(groups: Sequence[Group]) -> dict[str, float]:
    """The share of each class in the test rows, by the first run that holds confusions; empty where none does."""
    for counts in (counts for group in groups for counts in confusions(group)):
        return dict(zip(LABELS.names, counts.sum(axis=1) / counts.sum(), strict=True))
    return {}


def plot_study_confusion(groups: Sequence[Group], path: Path) -> bool:
    """Confusions in percent of the true class, side by side, of E0, E5 and the variant with the best macro F1.

    Each is the sum over its runs; a run that holds no counts is left out, and the title says so. Returns whether there was
    anything to draw.
    """
    best = best_variant(groups)
    shown = [group for group in groups if group.name in ("E0", "E5") or group is best]
    matrices = [(group, counts) for group in shown if (counts := confusions(group))]
    if not matrices:
        return False
    title = "confusions in percent of the true class, FER2013 PrivateTest"
    with picture([path], 1.3 + 3.2 * len(matrices), 4.9, title) as figure:
        axes = figure.subplots(1, len(matrices), sharey=True, squeeze=False).ravel()
        for axis, (group, counts) in zip(axes, matrices, strict=True):
            shares = shares_of_true_class(np.sum(counts, axis=0))
            percent = np.array([[f"{100 * share:.0f}" for share in row] for row in shares])
            draw_matrix(axis, shares, LABELS.names, annot=percent, fmt="", vmin=0.0, vmax=1.0, annot_kws={"size": 13})
            runs = f"{len(counts)} of {len(group.runs)} runs" if len(counts) < len(group.runs) else f"runs: {len(counts)}"
            lead = f"{group.name} (best)" if group is best else group.name
            axis.set_title(f"{lead}, {runs}\nmacro F1 {plus_minus(group, 'macro_f1')}", fontsize=13)
            axis.tick_params(labelsize=13)
            axis.set_xlabel("predicted", fontsize=13)
            axis.set_ylabel("true" if axis is axes[0] else "", fontsize=13)
    return True


def plot_study_f1(groups: Sequence[Group], path: Path) -> None:
    """F1 of every variant as bars, one panel for the mean over classes and one a class, minority classes marked.

    Bars are means over seeds, whiskers one standard deviation, the dashed line is E0; the best of each panel is bold.
    """
    from matplotlib.patches import Patch

    shares = class_shares(groups)
    minority = [label for label in LABELS.names if shares.get(label, 1.0) < MINORITY]
    panels = {"macro_f1": "macro F1"} | {f"f1_{label}": label for label in LABELS.names}
    panels |= {f"f1_{label}": f"{label} (minority: {shares[label]:.1%} of rows)" for label in minority}
    places = np.arange(len(groups))
    colours = [BLUE if group.name in DOCUMENTED else ORANGE for group in groups]
    handles: dict[str, Any] = {
        label: Patch(color=colour, label=label)
        for label, colour in {"in the document": BLUE, "beyond it": ORANGE}.items()
        if colour in colours
    }
    baseline = next((group for group in groups if group.name == "E0"), None)
    lines = -(-len(panels) // 2)
    title = "F1 of every variant, FER2013 PrivateTest\nmean over the seeds (their number), whiskers: one standard deviation"
    with picture([path], 7.5, 1.3 + lines * (0.55 + 0.25 * len(groups)), title) as figure:
        axes = figure.subplots(lines, 2, sharex=True, sharey=True).ravel()
        for axis, (key, name) in zip(axes, panels.items(), strict=True):
            marked, best = key.removeprefix("f1_") in minority, best_shown(groups, key)
            for place, group, colour in zip(places, groups, colours, strict=True):
                mean, std = group.mean(key), group.std(key) or 0.0
                axis.barh(place, mean or 0.0, xerr=std or None, height=0.72, color=colour, capsize=3)
                text = "undefined" if mean is None else f"{mean:.3f}"
                label = axis.text((mean or 0.0) + std + 0.02, place, text, va="center", fontsize=10)
                label.set_bbox({"facecolor": MARKED if marked else "white", "edgecolor": "none", "pad": 0.6})
                label.set_fontweight("bold" if mean is not None and round(mean, 3) == best else "normal")
            if baseline is not None and (mean := baseline.mean(key)) is not None:
                line = axis.axvline(mean, color="0.25", linestyle="--", linewidth=1, label="E0")
                handles["E0"] = line
            axis.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6), facecolor=MARKED if marked else "white")
            axis.set_yticks(places, [f"{group.name} ({len(group.runs)})" for group in groups])
            axis.set_title(name, fontweight="bold" if marked else "normal")
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].invert_yaxis()
        figure.legend(handles=handles.values(), loc="outside lower center", ncols=3, frameon=False)
