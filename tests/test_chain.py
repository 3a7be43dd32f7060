"""The chain from drawn faces to answers, script by script, as the Makefile runs it."""

import json

import evaluate
import metadata_parallel
import predict
import report
import sample_faces
import train


def test_chain_from_drawn_faces_to_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample_faces.main(["--out", "data", "--count", "160", "--size", "48"]) == 0
    assert metadata_parallel.main(["--data", "data", "--out", "."]) == 0
    assert train.main(["--recipe", "demo", "--epochs", "3", "--exp", "chain", "--device", "cpu"]) == 0
    assert evaluate.main([]) == 0

    values = json.loads((tmp_path / "runs/chain/metrics.json").read_text())
    assert values["split"] == "val"
    assert values["rows"] == sum(values_rows(tmp_path / "runs/chain/predictions.parquet").values())
    history = [json.loads(line) for line in (tmp_path / "runs/chain/history.jsonl").read_text().splitlines()]
    assert len(history) == 3
    assert values["accuracy"] == history[values["epoch"] - 1]["accuracy"]  # scoring equals validation, exactly
    assert history[-1]["train_loss"] < history[0]["train_loss"]

    capsys.readouterr()
    picture = sorted((tmp_path / "data/images").glob("[0-9]*.jpg"))[0]
    assert predict.main([str(picture), "--model", "runs/chain/best.pth", "--detector", "none", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (face,) = answer["faces"]
    assert abs(sum(face["probabilities"].values()) - 1) < 1e-4
    assert -1 <= face["valence"] <= 1

    assert report.main(["runs/chain"]) == 0
    written = (tmp_path / "RESULTS.md").read_bytes()
    assert f"{values['accuracy']:.3f}".encode() in written
    assert report.main([]) == 0
    assert (tmp_path / "RESULTS.md").read_bytes() == written


def values_rows(path):
    """Rows per true label of a predictions parquet."""
    import pandas as pd

    return pd.read_parquet(path)["label"].value_counts().to_dict()
