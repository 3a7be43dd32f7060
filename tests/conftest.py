"""Data that several test files share: drawn faces with metadata, pixels of a FER2013 file, and one short training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from inference import Predictions

os.environ.setdefault("MPLBACKEND", "Agg")

FERPLUS_COLUMNS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF",
)  # fmt: skip
FERPLUS_OF_CLASS = (4, 5, 6, 1, 3, 2, 0)  # the column of each class of FER2013, by its number


@pytest.fixture(autouse=True)
def no_detector_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests find faces by the cascade, whether YuNet was fetched here or not, unless they say otherwise."""
    monkeypatch.delenv("FER_DETECTOR", raising=False)
    monkeypatch.setattr("faces.YUNET_FILE", "not_fetched.onnx")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metadata_{all,train,val}.parquet over 120 drawn faces of 48 px (affectnet8, valence, arousal)."""
    import metadata_parallel
    import sample_faces

    folder = tmp_path_factory.mktemp("drawn")
    sample_faces.write_dataset(folder / "data", count=120, size_px=48, seed=5, bad=2)
    assert metadata_parallel.main(["--data", str(folder / "data"), "--out", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metadata_{all,train,val,test}.parquet over a FER2013 csv of 84 random pictures (fer7, no affect)."""
    import metadata_parallel

    folder = tmp_path_factory.mktemp("pixels")
    rng = np.random.default_rng(11)
    lines = ["emotion,pixels,Usage"]
    for row in range(84):
        usage = ("Training", "Training", "PublicTest", "PrivateTest")[row // 7 % 4]
        lines.append(f"{row % 7},{' '.join(map(str, rng.integers(0, 256, 48 * 48)))},{usage}")
    (folder / "fer2013.csv").write_text("\n".join(lines) + "\n", encoding="ascii")
    assert metadata_parallel.main(["--data", str(folder / "fer2013.csv"), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pixels`, with FER+ votes: all ten for the expression that the file's own class names, but one row in six of
    each usage has no majority, and one is not a face."""
    import metadata_parallel

    folder = tmp_path_factory.mktemp("voted")
    rng = np.random.default_rng(12)
    pictures, votes = ["emotion,pixels,Usage"], ["Usage,Image name," + ",".join(FERPLUS_COLUMNS)]
    for row in range(84):
        usage = ("Training", "Training", "PublicTest", "PrivateTest")[row // 7 % 4]
        pictures.append(f"{row % 7},{' '.join(map(str, rng.integers(0, 256, 48 * 48)))},{usage}")
        counts = [0] * 10
        if row % 12 == 3:
            counts[0], counts[1] = 5, 5
        elif row % 12 == 9:
            counts[9] = 10
        else:
            counts[FERPLUS_OF_CLASS[row % 7]] = 10
        votes.append(f"{usage},fer{row:07d}.png,{','.join(map(str, counts))}")
    (folder / "fer2013.csv").write_text("\n".join(pictures) + "\n", encoding="ascii")
    (folder / "fer2013new.csv").write_text("\n".join(votes) + "\n", encoding="ascii")
    flags = ["--data", str(folder / "fer2013.csv"), "--ferplus", str(folder / "fer2013new.csv"), "--out", str(folder)]
    assert metadata_parallel.main(flags) == 0
    return folder


@pytest.fixture(scope="session")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three epochs of a light CNN with both heads on the drawn faces. Copy it before changing it."""
    import train

    runs = tmp_path_factory.mktemp("runs")
    assert train.main([*short_training(drawn, runs), "--exp", "short", "--save_path", str(runs / "copy.pth")]) == 0
    return runs / "short"


def short_training(drawn: Path, runs: Path) -> list[str]:
    """Arguments of a training of a few seconds: the demo's network on 24 px pictures, in float32 on the CPU."""
    flags = ["--recipe", "demo", "--epochs", "3", "--img_size", "24", "--batch_size", "32", "--seed", "3"]
    flags += ["--warmup_epochs", "0", "--reg_weight", "0.5", "--dropout", "0.3", "--select", "accuracy"]
    flags += ["--device", "cpu", "--no-amp", "--workers", "0"]
    metadata = ["--train_meta", str(drawn / "metadata_train.parquet"), "--val_meta", str(drawn / "metadata_val.parquet")]
    return [*flags, *metadata, "--runs", str(runs)]


def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line with which train.py refuses."""
    import train

    capsys.readouterr()
    assert train.main(list(flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and error.count("\n") == 1
    return error


def predictions_of(probabilities: list[list[float]], affect: list[list[float]] | None) -> "Predictions":
    """Hand-made predictions; of the first two rows the classes are 0 and 1, and the second row's valence is missing."""
    from inference import Predictions

    values = np.array(probabilities)
    known = np.array([[0.5, 0.5], [np.nan, 0.0]])[: len(values)]
    said = None if affect is None else np.array(affect)
    return Predictions(np.array([0, 1])[: len(values)], values, np.log(values + 1e-9).astype(np.float32), known, said)
