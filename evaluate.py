"""Score a checkpoint, or an ensemble of several, on a split: every metric, the report, the pictures.

Nothing but the checkpoint is needed: it knows its network, labels and preprocessing. Without one the newest run is taken,
without --split the test split where there is one. The figures are computed in float32 on any device.

    python evaluate.py runs/lightcnn/best.pth --split val
    python evaluate.py runs/a/best.pth runs/b/best.pth --out runs/ensemble
    python evaluate.py runs/lightcnn --logit_adjust auto --out runs/adjusted      # rare classes count for more
    python evaluate.py runs/lightcnn --tta ten_crop --calibrate --out runs/ten    # ten views of each picture; temperature
    python evaluate.py runs/lightcnn --label_set fer4 --out runs/four             # seven classes summed into four
"""

import hashlib
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metrics
from command_line import Parser, line_of
from fer_transform import FERDataset, default_workers, make_loader
from figures import PICTURES, write_pictures
from inference import (
    BATCH_SIZE,
    VIEWS,
    Predictions,
    adjust,
    average,
    choose_tau,
    fit_temperature,
    merge,
    run_views,
    soften,
)
from labels import LABEL_SETS, MERGES, LabelSet, remap, without_source
from metadata_parallel import MetadataError, read_metadata
from models import Checkpoint, ModelError, checkpoint_path, choose_device, load_checkpoint
from onnx_network import bare_name, contents_of, is_onnx

# Of what metrics.json says: what makes the figures of two splits those of the same files, scored in one way.
MADE_BY = (
    "sha256", "split_id", "model", "label_set", "members", "parameters", "epoch", "views", "logit_adjust", "temperature"
)  # fmt: skip


class EvaluationError(Exception):
    """A checkpoint and data that do not belong together; the message is one line and says what to do next."""


def score(predictions: Predictions, names: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Every score of the predictions, flat, trivial baselines included, and a reason for each that is undefined."""
    y_true, y_pred = predictions.y_true, predictions.y_pred
    scores, reasons = metrics.classification_scores(y_true, y_pred, predictions.probabilities, names)
    low, high = metrics.accuracy_interval(int((y_true == y_pred).sum()), len(y_true))
    scores |= {"accuracy_low": low, "accuracy_high": high}
    scores["expected_calibration_error"] = metrics.expected_calibration_error(predictions.probabilities, y_true)
    scores |= metrics.classification_baselines(y_true, names)
    affect, affect_reasons = affect_scores(predictions)
    return scores | affect, reasons | affect_reasons


def affect_scores(predictions: Predictions) -> tuple[dict[str, float], dict[str, str]]:
    """Valence and arousal, with trivial baselines; all undefined for a network that does not know them."""
    if predictions.affect_pred is not None:
        scores, reasons = metrics.affect_scores(predictions.affect_true, predictions.affect_pred)
        return scores | metrics.affect_baselines(predictions.affect_true), reasons
    keys = [f"{target}_{kind}" for target in metrics.AFFECT_TARGETS for kind in metrics.AFFECT_SCORES]
    return dict.fromkeys(keys, math.nan), dict.fromkeys(keys, "the network was not trained on valence and arousal")


# --- output -------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a text file to a temporary name, then rename it, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def to_json(values: dict[str, Any], reasons: dict[str, str]) -> str:
    """A flat dict as JSON: an undefined score is null, and `<key>_reason` beside it says why."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        undefined = isinstance(value, float) and not math.isfinite(value)
        flat[key] = None if undefined else value
        if key in reasons:
            flat[f"{key}_reason"] = reasons[key]
        elif undefined:
            flat[f"{key}_reason"] = "undefined on these rows"
    return json.dumps(flat, indent=2, allow_nan=False) + "\n"


def write_predictions(path: Path, dataset: FERDataset, predictions: Predictions, names: Sequence[str]) -> None:
    """One row a face: where it came from, its label, the predicted one, the probabilities, valence and arousal."""
    columns: dict[str, Any] = {column: dataset.rows[column] for column in ("path", "index")}
    columns["label"] = [names[index] for index in predictions.y_true]
    columns["predicted"] = [names[index] for index in predictions.y_pred]
    columns |= {f"p_{name}": predictions.probabilities[:, index] for index, name in enumerate(names)}
    for index, target in enumerate(metrics.AFFECT_TARGETS):
        columns[target] = predictions.affect_true[:, index]
        if predictions.affect_pred is not None:
            columns[f"{target}_predicted"] = predictions.affect_pred[:, index]
    temporary = path.with_name(path.name + ".tmp")
    dataset.rows.loc[:, []].assign(**columns).to_parquet(temporary, index=False)
    temporary.replace(path)


def text_report(
    values: dict[str, Any],
    predictions: Predictions,
    names: Sequence[str],
    *,
    counts: np.ndarray,
    pattern: metrics.ConfusionPattern,
) -> str:
    """The scores for people to read: per class, overall, baselines, and the confusions in words.

    `values` is what metrics.json holds; `counts` (C, C) and `pattern` are those of metrics.
    """
    lines = [f"{values['exp']}: {values['model']} on the {values['split']} split, {values['rows']} rows", ""]
    lines.append(f"{'':<10}{'precision':>11}{'recall':>9}{'F1':>9}{'rows':>8}")
    for index, name in enumerate(names):
        cells = [values[f"{kind}_{name}"] for kind in ("precision", "recall", "f1")]
        lines.append(f"{name:<10}{cells[0]:>11.3f}{cells[1]:>9.3f}{cells[2]:>9.3f}{counts[index].sum():>8d}")
    lines += [
        "",
        f"accuracy {values['accuracy']:.4f} (95% interval {values['accuracy_low']:.4f} to {values['accuracy_high']:.4f}; "
        f"always {metrics.majority_class(predictions.y_true, names)}: {values['baseline_accuracy_majority']:.4f}; "
        f"chance: {values['baseline_accuracy_chance']:.4f})",
        f"balanced accuracy {values['balanced_accuracy']:.4f}, macro F1 {values['macro_f1']:.4f}, "
        f"Cohen's kappa {values['cohen_kappa']:.4f}, Krippendorff's alpha {values['krippendorff_alpha']:.4f}",
        f"ROC-AUC {values['roc_auc_macro']:.4f}, PR-AUC {values['pr_auc_macro']:.4f} (macro, one class against the rest), "
        f"expected calibration error {values['expected_calibration_error']:.4f}",
        *steps_in_words(values),
    ]
    if any(values.get(f"{target}_rows", 0) for target in metrics.AFFECT_TARGETS):
        lines += ["", f"{'':<10}{'RMSE':>8}{'MAE':>8}{'Pearson':>9}{'SAGR':>8}{'CCC':>8}"]
        for target in metrics.AFFECT_TARGETS:
            cells = [values[f"{target}_{kind}"] for kind in ("rmse", "mae", "pearson", "sagr", "ccc")]
            lines.append(
                f"{target:<10}{cells[0]:>8.3f}{cells[1]:>8.3f}{cells[2]:>9.3f}{cells[3]:>8.3f}{cells[4]:>8.3f}"
                f"   (the mean: RMSE {values[f'baseline_{target}_rmse_mean']:.3f}; always positive: SAGR "
                f"{values[f'baseline_{target}_sagr_positive']:.3f}; always negative: "
                f"{values[f'baseline_{target}_sagr_negative']:.3f})"
            )
    confusions = metrics.commonest_confusions(counts, names)
    if confusions:
        lines += ["", "commonest confusions:"]
        lines += [f"  {share:.0%} of {true} taken for {taken} ({count} rows)" for true, taken, count, share in confusions]
    return "\n".join([*lines, "", *pattern_in_words(pattern)]) + "\n"


def steps_in_words(values: dict[str, Any]) -> list[str]:
    """Lines on how the probabilities were made, where that was no plain pass of the network, and on pictures seen before."""
    lines = []
    if "tta" in values:
        lines.append(
            f"mean of {values['views']} views (--tta {values['tta']}); the plain view alone: "
            f"accuracy {values['accuracy_plain']:.4f}, macro F1 {values['macro_f1_plain']:.4f}"
        )
    if "logit_adjust" in values:
        lines.append(f"logits adjusted by {values['logit_adjust']:g} times the log class frequencies of the training")
    if "temperature" in values:
        lines.append(
            f"temperature {values['temperature']:.3f}, fitted on the validation split; without it the expected calibration "
            f"error is {values['expected_calibration_error_uncalibrated']:.4f}"
        )
    if values.get("rows_seen"):
        lines.append(
            f"without the {values['rows_seen']} rows whose picture is in the training split, too: "
            f"accuracy {values['accuracy_unseen']:.4f}, macro F1 {values['macro_f1_unseen']:.4f}"
        )
    return lines


def pattern_in_words(pattern: metrics.ConfusionPattern, top: int = 10) -> list[str]:
    """Lines on which confusions are commoner than class totals explain, at most `top` of them, the strongest first."""
    if pattern.undefined:
        return [f"confusion pattern: not tested, {pattern.undefined}"]
    test = f"chi-square {pattern.chi2:.1f} with {pattern.chi2_df:.0f} degrees of freedom, {p_text(pattern.chi2_p)}"
    note = f" ({pattern.note})" if pattern.note else ""
    return [
        f"confusion pattern of {pattern.errors} mistakes: {test}, Cohen's w {pattern.cohen_w:.2f}{note}",
        f"confusions commoner than class totals explain: {len(pattern.excess)} of {np.isfinite(pattern.p_holm).sum()}",
        *(
            f"  {cell.true} taken for {cell.predicted}: {cell.rows} rows, {cell.expected:.0f} expected, "
            f"{cell.residual:+.1f} standard errors, {p_text(cell.p)} (Holm)"
            for cell in pattern.excess[:top]
        ),
    ]


def p_text(p: float) -> str:
    """A p-value in a few characters; one that underflows to 0 is not said to be 0."""
    return "p < 1e-300" if p < 1e-300 else f"p {p:.3f}" if p >= 0.001 else f"p {p:.0e}"


# --- the script ---------------------------------------------------------------------------------------------------------


def newest_run(runs: Path) -> Path:
    """The best checkpoint of the run that was written last. Raises EvaluationError where there is none."""
    checkpoints = sorted(runs.glob("*/best.pth"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise EvaluationError(f"no run in {runs}/ – train a network first: make train MODEL=lightcnn")
    return checkpoints[-1]


def default_meta(checkpoint: Path, split: str | None) -> Path:
    """The parquet to score: that of the test split where there is one and no split is asked for; beside the parquets that
    the run was trained with, where its record names such, else in this folder. Raises EvaluationError where the data have no
    test split and it is asked for."""
    val = Path(record_of(checkpoint.parent).get("args", {}).get("val_meta", "metadata_val.parquet"))
    val = val if val.is_file() else Path("metadata_val.parquet")
    test = val.with_name("metadata_test.parquet")
    if split is None:
        return test if test.is_file() else val
    if split == "test" and val.is_file() and not test.is_file():
        raise EvaluationError(f"{test} is not there: these data have no test split – score --split val")
    return {"train": val.with_name("metadata_train.parquet"), "val": val, "test": test}[split]


def split_of(meta: Path, asked: str | None) -> str:
    """The split whose rows a parquet holds. Raises EvaluationError for rows of several, or not of the one asked for."""
    found = sorted(read_metadata(meta)[0]["split"].unique())
    if len(found) != 1 or asked not in (None, found[0]):
        raise EvaluationError(
            f"{meta} holds rows of {', '.join(found) or 'no split'}, wanted is {asked or 'one split'} – "
            f"give {f'metadata_{asked}.parquet' if asked else 'metadata_val.parquet or metadata_test.parquet'}"
        )
    return found[0]


def check_belongs(checkpoint: Checkpoint, path: Path, meta: Path, *, cross_dataset: bool) -> None:
    """Refuse a checkpoint and a parquet that do not belong together, for their labels or for their split.

    A checkpoint knows the split that it was trained on; another split of the same pictures may hold training rows. One of
    the imbalance-aware study does not know it (None): that is said, and it is scored. On its own split a network may know
    fewer classes than the parquet, as it did in training. Raises EvaluationError.
    """
    rows, info = read_metadata(meta)
    split_id = checkpoint.info.get("split_id", "unknown")
    voted = "votes_happy" in rows or info["label_set"] == "ferplus8"
    if checkpoint.labels.name == "ferplus8" and split_id == info["split_id"] and not voted:
        raise EvaluationError(f"{meta} has no FER+ votes to score ferplus8 by – index with --ferplus fer2013new.csv")
    if cross_dataset or split_id == info["split_id"]:
        return
    source, target = LABEL_SETS[info["label_set"]], checkpoint.labels
    lacking = {name for name, index in zip(source.names, remap(source, target), strict=True) if index is None}
    lacking &= set(rows["label"].unique())
    if lacking:
        raise EvaluationError(
            f"{path} knows {target.name} ({', '.join(target.names)}), {meta} also has {', '.join(sorted(lacking))} – "
            f"index with --label_set {target.name}, or leave those rows out with --cross_dataset"
        )
    if split_id is None:
        print(f"note: {path} does not say on which split it was trained – that {meta} holds no row of it is for you to know")
        return
    raise EvaluationError(
        f"{path} was trained on split {split_id}, {meta} is of split {info['split_id']} and may "
        "hold its training rows – index as for the training, or, for other pictures, add --cross_dataset"
    )


def load_members(paths: Sequence[Path], label_set: str | None) -> list[Checkpoint]:
    """The checkpoints of an ensemble, which must name the same labels in the same order; `label_set` chooses the head where
    a network has several. Raises EvaluationError.
    """
    members = [load_checkpoint(path, label_set=label_set) for path in paths]
    for path, member in zip(paths, members, strict=True):
        if member.labels != members[0].labels:
            known, first = (", ".join(each.labels.names) for each in (member, members[0]))
            raise EvaluationError(f"{path} has labels {known}; {paths[0]} has {first} – score them one by one")
    return members


def output_folder(checkpoints: Sequence[Path], out: Path | None, *, own: str | None) -> Path:
    """Where results go: --out, else the folder of the one run, else runs/<name of the file or "ensemble">.

    `own` is a flag that wants another folder than the run's. Raises EvaluationError where none is given for it, and for the
    folder of another network, of another scoring, or of one of several.
    """
    path = checkpoints[0]
    of_run = f"{path.parent.name}_" if (path.parent / "run.json").is_file() else ""  # best.onnx, which many runs have
    by_file = path.parent if path.name in ("best.pth", "last.pth") else Path("runs") / f"{of_run}{bare_name(path)}"
    folder = out or (by_file if len(checkpoints) == 1 else Path("runs/ensemble"))
    theirs = any(path.parent.resolve() == folder.resolve() for path in checkpoints)
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise EvaluationError("one network is named twice – an ensemble has several")
    if theirs and path.name != "best.pth" and (path.parent / "best.pth").is_file():
        own = own or f"{path.name}, which is not the run's best.pth,"
    if theirs and len(checkpoints) > 1:
        raise EvaluationError(f"{folder} is the folder of one of them – give the ensemble its own: --out runs/NAME")
    if own is not None and (out is None or theirs):
        raise EvaluationError(f"{own} needs a folder of its own: --out runs/NAME")
    if not theirs and any((folder / name).is_file() for name in ("best.pth", "last.pth")):
        raise EvaluationError(f"{folder} is the folder of another network – give --out runs/NAME")
    scored = record_of(folder).get("scored")
    of_it = scored is None or path.resolve() in [Path(word).resolve() for word in shlex.split(scored)]
    if out is None and not theirs and not of_it:
        raise EvaluationError(f"{folder} holds the figures of another scoring – give --out runs/NAME")
    return folder


def predict_rows(
    members: Sequence[Checkpoint],
    *,
    meta: Path,
    labels: LabelSet,
    tta: str,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    data_root: str | None = None,
) -> tuple[list[list[Predictions]], FERDataset]:
    """What each checkpoint says of a parquet's rows in each view of VIEWS[tta], and these rows, of `labels`.

    Raises MetadataError.
    """
    workers = default_workers(device) if workers is None else workers
    said, dataset = [], None
    for member in members:
        dataset = FERDataset(meta, labels=labels, preprocess=member.preprocess, data_root=data_root)
        loader = make_loader(dataset, batch_size=batch_size, workers=workers, device=device)
        views = run_views(member.model, loader, device=device, tta=tta, label=f"scoring {meta.stem}")
        if not member.info.get("affect_rows"):
            views = [view._replace(affect_pred=None) for view in views]  # a head that saw no label says nothing
        said.append(views)
    assert dataset is not None
    return said, dataset


@dataclass(frozen=True)
class Steps:
    """What is done with the averaged probabilities before they are scored: logits adjusted by `tau`, divided by the
    temperature, classes merged from `source` to `target`, as predict.py does; None for a step that is left out."""

    source: LabelSet
    target: LabelSet
    priors: np.ndarray | None = None
    tau: float | None = None
    temperature: float | None = None

    def __call__(self, said: Predictions) -> Predictions:
        if self.tau is not None and self.priors is not None:
            said = adjust(said, self.priors, self.tau)
        if self.temperature is not None:
            said = soften(said, self.temperature)
        return said if self.target == self.source else merge(said, self.source, self.target)


def choose_steps(
    members: Sequence[Checkpoint],
    checkpoint: Path,
    meta: Path,
    *,
    target: LabelSet,
    logit_adjust: str | None,
    calibrate: bool,
    **loading: Any,
) -> Steps:
    """The steps that the flags ask for; τ "auto" and the temperature are fitted on the validation split beside `meta`.

    Raises EvaluationError or MetadataError.
    """
    steps = Steps(members[0].labels, target)
    lacking = without_source(steps.source, target)
    if lacking:
        raise EvaluationError(
            f"--label_set {target.name}: {checkpoint} says nothing of {', '.join(lacking)} – "
            f"it knows {', '.join(steps.source.names)}"
        )
    if logit_adjust is not None:
        steps = replace(steps, priors=training_priors(members, checkpoint), tau=strength(logit_adjust))
    if not calibrate and (logit_adjust is None or steps.tau is not None):
        return steps
    val_meta = meta.with_name("metadata_val.parquet")
    split_of(val_meta, "val")
    indexed = LABEL_SETS[read_metadata(val_meta)[1]["label_set"]]
    if len(set(remap(steps.source, indexed)) - {None}) < len(steps.source) and indexed.name in MERGES:
        raise EvaluationError(
            f"{val_meta} has merged classes of {steps.source.name} – index with that --label_set to calibrate"
        )
    check_belongs(members[0], checkpoint, val_meta, cross_dataset=False)

    views, _ = predict_rows(members, meta=val_meta, labels=steps.source, **loading)
    said = average([average(member) for member in views])
    if steps.priors is not None and steps.tau is None:
        steps = replace(steps, tau=choose_tau(said, steps.priors))
        print(f"logit adjustment: tau {steps.tau:.2f}, by macro F1 on {val_meta}")
    if calibrate:
        temperature = fit_temperature(replace(steps, target=steps.source)(said))
        steps = replace(steps, temperature=temperature)
        print(f"calibration: temperature {temperature:.3f}, by likelihood on {val_meta}")
    return steps


def seen_in_training(dataset: FERDataset, train_meta: Path) -> np.ndarray | None:
    """Which rows show a picture that is also, pixel for pixel, one of the training rows of the same split: (N,) bool.

    None where that cannot be told: the pictures are files, or that parquet is not there.
    """
    if dataset.pixels is None or not train_meta.is_file():
        return None
    rows, info = read_metadata(train_meta)
    if info["split_id"] != dataset.info["split_id"]:
        return None
    pixels = dataset.pixels
    known = {hashlib.sha256(pixels[index]).digest() for index in rows["index"]}
    return np.array([hashlib.sha256(pixels[index]).digest() in known for index in dataset.index])


def unseen_scores(said: Predictions, seen: np.ndarray | None, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy and macro-F1 without the rows whose pictures the training had too, and the number of these; empty where that
    is not known or nothing is left."""
    if seen is None or seen.all():
        return {}
    scores, _ = metrics.classification_scores(said.y_true[~seen], said.y_pred[~seen], said.probabilities[~seen], names)
    return {"rows_seen": int(seen.sum())} | {f"{key}_unseen": scores[key] for key in ("accuracy", "macro_f1")}


def training_priors(members: Sequence[Checkpoint], path: Path) -> np.ndarray:
    """Each class's share of the training rows of the checkpoints, (C,), which must agree on it. Raises EvaluationError."""
    counts = members[0].info.get("class_counts")
    if counts is None or set(counts) != set(members[0].labels.names) or min(counts.values()) == 0:
        raise EvaluationError(f"{path} does not know how frequent each class was in training – leave out --logit_adjust")
    if any(member.info.get("class_counts") != counts for member in members):
        raise EvaluationError("--logit_adjust: the checkpoints were trained on other class frequencies – adjust each alone")
    rows = np.array([counts[name] for name in members[0].labels.names], dtype=np.float64)
    return rows / rows.sum()


def evaluate(
    joined: Predictions,
    dataset: FERDataset,
    members: Sequence[Checkpoint],
    *,
    split: str,
    out: Path,
    more: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    """Score predictions of the checkpoints for the rows of a dataset, and write everything into `out`.

    `more` is added to metrics.json. Returns its contents before NaN becomes null, and the text report.
    """
    labels = dataset.labels
    scores, reasons = score(joined, labels.names)
    model_name = "+".join(dict.fromkeys(member.info["model"] for member in members))
    exp = out.resolve().name  # the name that . stands for, too
    counts = metrics.confusion_counts(joined.y_true, joined.y_pred, len(labels))
    pattern = metrics.confusion_pattern_test(counts, labels.names)
    values: dict[str, Any] = {
        "exp": exp, "model": model_name, "split": split, "rows": len(dataset), "rows_left_out": dataset.left_out,
        "label_set": labels.name, "split_id": dataset.info["split_id"], "epoch": members[0].info.get("epoch"),
        "members": len(members), "parameters": sum(member.info["parameters"] for member in members),
    } | more | scores | pattern.scores() | {"confusion": counts.tolist()}  # fmt: skip
    reasons |= dict.fromkeys(pattern.scores(), pattern.undefined) if pattern.undefined else {}
    remove_figures_of_others(out, values)
    text = text_report(values, joined, labels.names, counts=counts, pattern=pattern)
    for suffix in ("", f"_{split}"):  # every file twice: as that of the split scored last, and under the split's name
        write_text(out / f"metrics{suffix}.json", to_json(values, reasons))
        write_text(out / f"classification_report{suffix}.txt", text)
    write_predictions(out / "predictions.parquet", dataset, joined, labels.names)
    title = f"{exp}: accuracy {values['accuracy']:.3f}, macro F1 {values['macro_f1']:.3f} on {split}, {len(dataset)} rows"
    write_pictures(
        out, labels.names, counts=counts, pattern=pattern, scores=scores, y_true=joined.y_true,
        probabilities=joined.probabilities, affect_true=joined.affect_true, affect_pred=joined.affect_pred,
        image=dataset.image, title=title, split=split, model_name=model_name,
    )  # fmt: skip
    return values, text


def remove_figures_of_others(out: Path, values: dict[str, Any]) -> None:
    """Remove the files of the other split from a folder where they are of another network, or were scored in another way."""
    for path in out.glob("metrics_*.json"):
        try:
            others = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            others = {}
        older = "sha256" not in others  # than that key
        if any(others.get(key) != values.get(key) for key in MADE_BY[older:]):
            split = path.stem.removeprefix("metrics_")
            print(f"{path} and what belongs to it was made in another way, and is removed")
            for name in (path.name, f"classification_report_{split}.txt", *(f"{stem}_{split}.png" for stem in PICTURES)):
                (out / name).unlink(missing_ok=True)


def write_record(
    checkpoints: Sequence[Path], members: Sequence[Checkpoint], out: Path, command: str, *, made: bool = False
) -> None:
    """Put the record of the training beside what `command` made of it: figures that were scored in another way than the
    training does, or (`made`) a network of other weights.

    For that, and for several, the members' histories one after another, and of each its command and chosen epoch, or epochs,
    where they are of one run; a member that is a mean of weights comes after its own. None where one has no record; that of
    the run's own folder stays as it is.
    """
    found = [record_folder(path, member) for path, member in zip(checkpoints, members, strict=True)]
    folders = [run.resolve() for run in found if run is not None]
    if out.resolve() in [*folders, *(path.parent.resolve() for path in checkpoints)]:
        return
    for name in ("run.json", "history.jsonl", "training_history.png"):  # of an earlier scoring
        (out / name).unlink(missing_ok=True)
    if len(folders) < len(found):
        print(f"note: the record of the training of {checkpoints[found.index(None)]} is not here, so none is written")
        return
    epochs: dict[Path, list[Any]] = {}
    for run, member in zip(folders, members, strict=True):
        epochs.setdefault(run, []).append(member.info.get("epoch"))
    folders = list(epochs)
    records = [record_of(run) for run in folders]
    if len(folders) == 1 and (folders[0] / "training_history.png").is_file():
        shutil.copyfile(folders[0] / "training_history.png", out / "training_history.png")
    if len(members) == 1 and not made:
        record = records[0] | {"scored": command}
    else:
        shared = {
            key: value for key, value in records[0]["args"].items() if all(r["args"].get(key) == value for r in records)
        }
        shared |= {"exp": out.name} if made else {}  # by which what goes on from it finds it
        trained: list[dict[str, Any]] = []
        for run, record in zip(folders, records, strict=True):
            chosen = epochs[run][0] if len(epochs[run]) == 1 else ", ".join(map(str, epochs[run]))
            own = {"epoch": chosen, "epochs": len(history_lines(run))} if "members" not in record else {}
            told = ("command", "resumed", "machine", "earlier_machines", "teachers")
            own |= {key: record[key] for key in told if key in record}
            trained += [*record.get("members", []), {"name": run.name, "resumed": []} | own]
        one_start = len({r.get("init_exp") for r in records}) == 1
        left_out = {"resumed", "earlier_machines", "teachers"} | (set() if one_start else {"init_exp"})
        record = {key: value for key, value in records[0].items() if key not in left_out}
        record |= {"command": command, "args": shared, "members": trained, "voted": any(map(learnt_votes, records))}
    write_text(out / "run.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "history.jsonl", "".join(line for run in folders for line in history_lines(run)))


def record_folder(path: Path, member: Checkpoint) -> Path | None:
    """Where the record of a network's training is, if anywhere: beside the checkpoint, or, of a file that was put elsewhere
    and of an ONNX file, in runs/<exp>, unless that is of another training, or went on after the ONNX file was made."""
    beside, run = path.parent, Path("runs") / str(member.info.get("exp"))
    if (beside / "run.json").is_file() and not is_onnx(path):
        return beside
    known = ("recipe", "model", "seed", *(["epochs"] if member.info.get("epochs") is not None else []))
    for folder in (beside, run):
        args = record_of(folder).get("args")
        if args is not None and all(args.get(key) == member.info.get(key) for key in known):
            return folder
    return None


def record_of(run: Path) -> dict[str, Any]:
    """The contents of a run folder's run.json, none where it has none. Raises EvaluationError where it is damaged."""
    path = run / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path} is damaged ({error}) – remove it, or put back a whole one") from error


def learnt_votes(record: dict[str, Any]) -> bool:
    """Whether FER+ votes are behind the training of a run.json; older ones have the weight of a second head only."""
    return bool(record.get("voted") or record.get("args", {}).get("votes_weight"))


def history_lines(run: Path) -> list[str]:
    """The lines of a run folder's history.jsonl, none where it has none."""
    path = run / "history.jsonl"
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def digests(paths: Sequence[Path]) -> str:
    """The SHA-256 of files as they are unpacked, with blanks between them; none for what is not there, of which loading has
    more to say. Raises ModelError."""
    return " ".join(hashlib.sha256(contents_of(path)).hexdigest() for path in paths if path.is_file())


def strength(text: str) -> float | None:
    """The number behind --logit_adjust, or None for "auto". Raises EvaluationError."""
    try:
        tau = None if text == "auto" else float(text)
    except ValueError:
        tau = math.nan
    if tau is not None and not 0.0 <= tau <= 100.0:
        raise EvaluationError(f"--logit_adjust is a number from 0, or auto, not {text!r}")
    return tau


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, metavar="CKPT", help="checkpoint or run folder (default: the newest)"
    )
    parser.add_argument("--split", choices=["train", "val", "test"], help="default: test where there is one, else val")
    parser.add_argument(
        "--meta", type=Path, help="parquet to score (default: metadata_<split>.parquet of the run, else of this folder)"
    )
    parser.add_argument("--data_root", "--data-root", help="where the pictures are, if not where the parquet says")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: the checkpoint's run folder, else runs/NAME)"
    )
    parser.add_argument(
        "--cross_dataset",
        "--cross-dataset",
        action="store_true",
        help="score on other pictures than the checkpoint's own; you vouch that none of its training rows are among them",
    )
    parser.add_argument(
        "--logit_adjust",
        "--logit-adjust",
        metavar="TAU",
        help="take TAU times the log class frequencies from the logits; auto: the TAU of the best macro F1 on validation",
    )
    parser.add_argument(
        "--tta",
        choices=sorted(VIEWS),
        default="none",
        help="average over views of each picture: 2 (itself and its mirror image), 10, or 20 (default: %(default)s)",
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="divide the logits by the temperature that fits the validation rows best"
    )
    parser.add_argument(
        "--label_set",
        "--label-set",
        choices=sorted(LABEL_SETS),
        help="score as these classes: by the head for FER+ votes where it knows them, else by sums of probabilities",
    )
    parser.add_argument("--batch_size", "--batch-size", type=int, default=BATCH_SIZE, help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="loader processes (default: by platform)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Score and print; status 2 with one line where that cannot be done."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    try:
        if args.batch_size < 1 or (args.workers or 0) < 0:
            raise EvaluationError("--batch_size must be at least 1 and --workers at least 0")
        checkpoints = [checkpoint_path(path) for path in args.checkpoints]
        checkpoints = checkpoints or [newest_run(Path("runs"))]
        meta = args.meta or default_meta(checkpoints[0], args.split)
        split = split_of(meta, args.split)
        sha256 = digests(checkpoints)
        members = load_members(checkpoints, args.label_set)
        for path, member in zip(checkpoints, members, strict=True):
            check_belongs(member, path, meta, cross_dataset=args.cross_dataset)
        labels = members[0].labels
        target = LABEL_SETS[args.label_set] if args.label_set else labels
        changing = {
            "--cross_dataset": args.cross_dataset,
            "--logit_adjust": args.logit_adjust is not None,
            "--tta": args.tta != "none",
            "--calibrate": args.calibrate,
            "--label_set": args.label_set not in (None, members[0].info["label_set"]),
        }
        if args.cross_dataset and (args.calibrate or args.logit_adjust == "auto"):
            raise EvaluationError(
                "--calibrate and --logit_adjust auto want the network's own validation split – leave out --cross_dataset"
            )
        own = next((flag for flag, given in changing.items() if given), None)
        out = output_folder(checkpoints, args.out, own=own)
        loading = {"batch_size": args.batch_size, "workers": args.workers, "data_root": args.data_root, "tta": args.tta}
        loading["device"] = choose_device(args.device)
        steps = choose_steps(
            members,
            checkpoints[0],
            meta,
            target=target,
            logit_adjust=args.logit_adjust,
            calibrate=args.calibrate,
            **loading,
        )
        out.mkdir(parents=True, exist_ok=True)  # where that cannot be, it is known before the work
        views, dataset = predict_rows(members, meta=meta, labels=target, **loading)
        joined = average([average(member) for member in views])
        for path, answers in zip(checkpoints, views, strict=True):
            if not all(np.isfinite(view.probabilities).all() for view in answers):
                raise EvaluationError(f"{path} answers with no numbers: its weights are damaged – train it again")
        said = steps(joined)
        if digests(checkpoints) != sha256:
            raise EvaluationError("the network has changed while it was scored – once its training is over, score it again")
        more: dict[str, Any] = {"sha256": sha256}
        if steps.tau is not None:
            more |= {"logit_adjust": steps.tau}
        if args.tta != "none":
            plain, _ = score(steps(average([member[0] for member in views])), target.names)
            more |= {"tta": args.tta, "views": len(views[0])}
            more |= {f"{key}_plain": plain[key] for key in ("accuracy", "macro_f1")}
        if steps.temperature is not None:
            raw = replace(steps, temperature=None)(joined)
            before = metrics.expected_calibration_error(raw.probabilities, raw.y_true)
            more |= {"temperature": steps.temperature, "expected_calibration_error_uncalibrated": before}
        if split != "train" and not args.cross_dataset:
            seen = seen_in_training(dataset, meta.with_name("metadata_train.parquet"))
            more |= unseen_scores(said, seen, target.names)
        values, text = evaluate(said, dataset, members, split=split, out=out, more=more)
        write_record(checkpoints, members, out, shlex.join(["python", "evaluate.py", *argv]))
    except (EvaluationError, MetadataError, ModelError, OSError) as error:
        print(f"evaluate.py: {line_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nevaluate.py: interrupted", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError:
        print(f"evaluate.py: out of memory – give a --batch_size below {args.batch_size}", file=sys.stderr)
        return 2
    print(text)
    if values["rows_left_out"]:
        print(f"left out: {values['rows_left_out']} rows without a class of {target.name}")
    print(f"written to {out}{os.sep}: metrics.json, classification_report.txt, predictions.parquet and pictures (*.png)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
