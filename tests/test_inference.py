"""Views, ensembles, merged classes, logit adjustment, temperature: each by hand or against the plain way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import predictions_of
from scipy.optimize import minimize
from torch import Tensor, nn

import metrics
from fer_transform import FERDataset, make_loader
from inference import (
    TAUS,
    VIEWS,
    Predictions,
    adjust,
    average,
    choose_tau,
    fit_temperature,
    five_crops,
    merge,
    run_inference,
    run_views,
    soften,
    with_surroundings,
)
from labels import LABEL_SETS
from models import load_checkpoint

CPU = torch.device("cpu")


def test_inference_is_in_row_order_and_eval_mode(trained: Path, drawn: Path) -> None:
    checkpoint = load_checkpoint(trained / "best.pth")
    dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=checkpoint.preprocess)
    checkpoint.model.train()
    before = {key: value.clone() for key, value in checkpoint.model.state_dict().items()}
    predictions = run_inference(checkpoint.model, make_loader(dataset, batch_size=5, workers=0, device=CPU), device=CPU)
    assert not checkpoint.model.training
    assert all(torch.equal(value, before[key]) for key, value in checkpoint.model.state_dict().items())
    assert predictions.y_true.tolist() == dataset.y_cls.tolist()
    np.testing.assert_array_equal(predictions.affect_true, dataset.y_reg.numpy())
    for row in range(0, len(dataset), 4):
        with torch.no_grad():
            output = checkpoint.model(dataset[row][0][None])
        np.testing.assert_allclose(predictions.logits[row], output.logits[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(predictions.affect_pred[row], output.affect[0].numpy(), atol=1e-5)  # type: ignore[index]
    shares = np.exp(predictions.logits.astype(np.float64))
    np.testing.assert_allclose(predictions.probabilities, shares / shares.sum(axis=1, keepdims=True), atol=1e-12)
    assert predictions.probabilities.dtype == np.float64
    assert predictions.y_pred.tolist() == predictions.logits.argmax(axis=1).tolist()


def test_an_ensemble_is_the_mean_of_the_probabilities() -> None:
    first = predictions_of([[0.6, 0.3, 0.1], [0.6, 0.4, 0.0001]], [[0.2, 0.0], [1.0, -1.0]])
    second = predictions_of([[0.1, 0.8, 0.1], [0.5, 0.3, 0.2]], [[0.4, 0.5], [0.0, 0.0]])
    third = predictions_of([[0.5, 0.4, 0.1], [0.1, 0.2, 0.7]], [[0.6, 0.1], [0.5, -0.5]])
    joined = average([first, second, third])
    np.testing.assert_allclose(joined.probabilities, [[0.4, 0.5, 0.1], [0.4, 0.3, 0.9001 / 3]])
    assert joined.y_pred.tolist() == [1, 0]  # two of three would have said 0 in the first row
    np.testing.assert_allclose(joined.affect_pred, [[0.4, 0.2], [0.5, -0.5]])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.exp(joined.logits), joined.probabilities, rtol=1e-6)
    without = average([first, predictions_of([[0.2, 0.2, 0.6]] * 2, None)])
    assert without.affect_pred is None


def test_a_single_member_is_its_own_mean() -> None:
    said = predictions_of([[0.6, 0.3, 0.1]], None)
    assert average([said]) is said


# Views


def test_five_crops_move_the_picture_into_each_corner() -> None:
    images = torch.arange(2 * 1 * 48 * 48, dtype=torch.float32).reshape(2, 1, 48, 48)
    crops = five_crops(images)
    assert len(crops) == 5 and torch.equal(crops[0], images)
    assert all(crop.shape == images.shape for crop in crops)
    for crop, (down, right) in zip(crops[1:], [(2, 2), (2, -2), (-2, 2), (-2, -2)], strict=True):
        for row, column in [(20, 30), (10, 10)]:
            assert torch.equal(crop[..., row, column], images[..., row - down, column - right])
    assert torch.equal(crops[1][..., 0, 0], images[..., 0, 0])  # edges are repeated


def test_views_come_plain_first_and_mirrored_second() -> None:
    images = torch.randn(3, 1, 24, 24)
    assert [len(VIEWS[name](images)) for name in ("none", "flip", "ten_crop", "two_scales")] == [1, 2, 10, 20]
    for name in VIEWS:
        assert torch.equal(VIEWS[name](images)[0], images)
    assert torch.equal(VIEWS["flip"](images)[1], images.flip(3))
    views = VIEWS["ten_crop"](images)
    assert all(torch.equal(mirrored, view.flip(3)) for view, mirrored in zip(views[::2], views[1::2], strict=True))
    assert len({view.numpy().tobytes() for view in views}) == 10
    both = VIEWS["two_scales"](images)
    assert all(torch.equal(one, other) for one, other in zip(both[:10], views, strict=True))
    assert all(view.shape == images.shape for view in both) and torch.equal(both[11], both[10].flip(3))


def test_surroundings_make_the_picture_smaller_in_its_middle() -> None:
    """A bright square of 22 px in the middle of 44: 20 px wide after, as 44 px became 48 in the place of 44."""
    images = torch.zeros(1, 1, 44, 44)
    images[..., 11:33, 11:33] = 1.0
    seen = with_surroundings(images)
    assert seen.shape == images.shape and seen[0, 0, 22].sum().item() == pytest.approx(22 * 44 / 48, abs=0.2)
    torch.testing.assert_close(seen, seen.flip(-1))
    torch.testing.assert_close(with_surroundings(torch.ones(1, 3, 24, 24)), torch.ones(1, 3, 24, 24))  # edges are repeated


def test_views_of_a_network_are_those_of_each_picture(trained: Path, drawn: Path) -> None:
    checkpoint = load_checkpoint(trained / "best.pth")
    dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=checkpoint.preprocess)
    loader = make_loader(dataset, batch_size=7, workers=0, device=CPU)
    said = run_views(checkpoint.model, loader, device=CPU, tta="ten_crop")
    plain = run_inference(checkpoint.model, loader, device=CPU)
    np.testing.assert_array_equal(said[0].logits, plain.logits)
    joined = average(said)
    assert joined.y_true.tolist() == plain.y_true.tolist()
    for row in (0, len(dataset) - 1):
        with torch.no_grad():
            outputs = [checkpoint.model(view) for view in VIEWS["ten_crop"](dataset[row][0][None])]
        expected = np.mean([metrics.softmax(output.logits[0].numpy()) for output in outputs], axis=0)
        np.testing.assert_allclose(joined.probabilities[row], expected, atol=1e-6)
        affect = np.mean([output.affect[0].numpy() for output in outputs], axis=0)
        np.testing.assert_allclose(joined.affect_pred[row], affect, atol=1e-5)  # type: ignore[index]


def test_a_mirrored_picture_has_the_same_mean_over_flips() -> None:
    class Lopsided(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[..., :4].mean(dim=(1, 2, 3)), images[..., 4:].mean(dim=(1, 2, 3))], dim=1)

    images, net = torch.randn(5, 1, 8, 8), Lopsided()
    means = [sum(net(view).softmax(dim=1) for view in VIEWS["flip"](batch)) for batch in (images, images.flip(3))]
    torch.testing.assert_close(*means)


# Merged classes


def test_merged_classes_by_hand() -> None:
    fer7, fer4 = LABEL_SETS["fer7"], LABEL_SETS["fer4"]
    said = predictions_of([[0.05, 0.1, 0.15, 0.2, 0.25, 0.01, 0.24]], None)  # angry disgust fear happy sad surprise neutral
    merged = merge(said, fer7, fer4)
    by_name = dict(zip(fer4.names, merged.probabilities[0], strict=True))
    assert by_name == pytest.approx({"angry": 0.15, "sad": 0.4, "happy": 0.2, "neutral": 0.25})
    assert said.y_pred.tolist() == [4] and fer4.names[merged.y_pred[0]] == "sad"
    np.testing.assert_allclose(np.exp(merged.logits), merged.probabilities, rtol=1e-6)


def test_classes_without_a_place_are_left_out_and_lacking_ones_refused() -> None:
    eight, fer7 = LABEL_SETS["affectnet8"], LABEL_SETS["fer7"]
    said = predictions_of([[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.3]], None)
    np.testing.assert_allclose(merge(said, eight, fer7).probabilities, np.full((1, 7), 1 / 7))
    with pytest.raises(ValueError, match="contempt"):
        merge(said, fer7, eight)


# Logit adjustment and temperature


def test_adjustment_by_hand() -> None:
    said = predictions_of([[0.6, 0.3, 0.1]], None)
    priors = np.array([0.7, 0.2, 0.1])
    adjusted = adjust(said, priors, 1.0).probabilities[0]
    ratios = np.array([0.6 / 0.7, 0.3 / 0.2, 0.1 / 0.1])
    np.testing.assert_allclose(adjusted, ratios / ratios.sum(), rtol=1e-5)
    np.testing.assert_allclose(adjust(said, priors, 0.0).probabilities, said.probabilities, rtol=1e-6)


def test_tau_is_that_of_the_best_macro_f1() -> None:
    """Rows of the rare class lie 1.0 too low for it: half of log 9, the ratio of the priors, is just enough."""
    logits = np.array([[1.0, 0.0]] * 3 + [[1.0, 4.0], [5.0, 0.0], [5.0, 0.0]], dtype=np.float32)
    said = predictions_of([[0.5, 0.5]] * 6, None)._replace(
        y_true=np.array([1, 1, 1, 1, 0, 0]), logits=logits, probabilities=metrics.softmax(logits)
    )
    priors = np.array([0.9, 0.1])
    tau = choose_tau(said, priors)
    assert tau == min(value for value in TAUS if value * np.log(9) > 1.0)  # the smallest that is perfect
    assert (adjust(said, priors, tau).y_pred == said.y_true).all()
    # Two of the common class lie as low as the one of the rare: 0.5 costs accuracy (7 of 9, not 8) and gains macro F1.
    logits = np.array([[5.0, 0.0]] * 6 + [[1.0, 0.0]] * 3, dtype=np.float32)
    said = said._replace(y_true=np.array([0] * 8 + [1]), logits=logits, probabilities=metrics.softmax(logits))
    assert choose_tau(said, priors) == 0.5


def test_temperature_is_that_of_the_lowest_negative_log_likelihood() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 5)).astype(np.float32)
    shares = metrics.softmax(logits)
    y_true = np.array([generator.choice(5, p=row) for row in shares])  # as likely as the logits say
    sure = (3.0 * logits).astype(np.float32)
    said = predictions_of([[0.2] * 5] * 4000, None)._replace(y_true=y_true, logits=sure, probabilities=metrics.softmax(sure))
    temperature = fit_temperature(said)

    def loss(value: np.ndarray) -> float:
        return float(-np.log(metrics.softmax(sure / value[0])[np.arange(4000), y_true]).mean())

    assert temperature == pytest.approx(minimize(loss, [1.0], method="Nelder-Mead").x[0], rel=2e-3)
    assert temperature == pytest.approx(3.0, rel=0.05)
    softened = soften(said, temperature)
    assert softened.y_pred.tolist() == said.y_pred.tolist()
    before = metrics.expected_calibration_error(said.probabilities, y_true)
    assert before > 0.15 and metrics.expected_calibration_error(softened.probabilities, y_true) < 0.03


def test_no_temperature_is_fitted_where_every_row_is_right() -> None:
    logits = np.array([[0.2, 0.1], [0.0, 0.3]], np.float32)
    said = Predictions(np.array([0, 1]), metrics.softmax(logits), logits, np.full((2, 2), np.nan), None)
    assert fit_temperature(said) == 1.0


def test_softened_by_hand() -> None:
    said = predictions_of([[0.8, 0.2]], None)._replace(logits=np.log(np.array([[0.8, 0.2]], dtype=np.float32)))
    root = np.sqrt([0.8, 0.2])
    np.testing.assert_allclose(soften(said, 2.0).probabilities[0], root / root.sum(), rtol=1e-5)
