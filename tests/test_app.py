"""The web page: what it shows of an answer, and, where there are gradio, selenium and Chromium, the page in a browser."""

import csv
import json
import os
import shutil
import socket
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from faces import Face, read_image

import cv2
import numpy as np
import pytest

import app
from answers import Answer, FacePrediction
from labels import LABEL_SETS
from onnx_network import ModelError

SHARES = {"angry": 0.05, "disgust": 0.0, "fear": 0.15, "happy": 0.6, "sad": 0.1, "surprise": 0.07, "neutral": 0.03}


def said(valence: float | None = None, arousal: float | None = None) -> FacePrediction:
    return FacePrediction(Face(10, 20, 30, 40, 0.9), SHARES, valence, arousal)


def test_bars_are_in_order_and_as_long_as_their_share() -> None:
    text = app.bars(said(), 2)
    assert "<h4>face 2: happy 60%</h4>" in text and "<svg" not in text
    names = [part.split("<")[0] for part in text.split('class="bar"><span>')[1:]]
    assert names == ["happy", "fear", "sad", "surprise", "angry", "neutral", "disgust"]
    assert text.count("width:60.0%") == 1 and "width:15.0%" in text


def test_the_plane_shows_valence_to_the_right_and_arousal_upwards() -> None:
    assert 'cx="190.0" cy="100.0"' in app.plane_svg(1.0, 0.0)
    assert 'cx="100.0" cy="10.0"' in app.plane_svg(0.0, 1.0)
    assert "−0.50" not in app.plane_svg(-0.5, 0.25) and "-0.50, +0.25" in app.plane_svg(-0.5, 0.25)
    assert "<svg" in app.bars(said(0.1, 0.2), 1)


def test_the_table_is_that_of_predict() -> None:
    names = LABEL_SETS["fer7"].names
    header, row = app.table_of(Answer("picture", True, [said()], None), names)
    values = dict(zip(header, row, strict=True))
    assert values["label"] == "happy" and values["p_fear"] == 0.15 and values["x"] == 10 and "path" not in values
    assert app.table_of(Answer("picture", False, [], None), names)[1][-1] is None


def test_what_is_read_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = app.networks()["fernet_votes"]
    assert [name for _, name in app.heads_of(path)] == ["fer7", "ferplus8"]
    assert not any("face_detection" in name for name in app.networks())
    settings = {"detector": "none", "model": None}
    assert app.read(None, path, "fer7", **settings) == (None, "", None, None)  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    drawn, text, table, target = app.read(str(tmp_path / "a.png"), path, "fer7", **settings)  # type: ignore[arg-type]
    assert drawn.shape == (5 * 60 + 250 // 6, 5 * 50, 3)  # enlarged, with a strip for its label above it
    assert "taken whole" in text and text.count('class="face"') == 1
    with Path(target).open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == table["headers"] and len(lines) == 2
    cv2.imwrite(str(tmp_path / "big.png"), np.zeros((400, 400, 3), np.uint8))
    assert "OpenCV" not in text
    said = app.read(str(tmp_path / "big.png"), path, "fer7", detector="haar", model=None)[1]
    assert said.startswith("<p>no face found</p>") and "<small>faces found by OpenCV's Haar cascade" in said
    own, renamed = (app.read(str(tmp_path / "a.png"), path, name, **settings)[1] for name in ("ferplus8", "custom"))  # type: ignore[arg-type]
    assert own == renamed != text  # a file's classes may have a name of their own
    (tmp_path / "text.jpg").write_text("no picture", encoding="utf-8")
    why = "<p>not an image – JPEG, PNG, WebP, BMP, TIFF and GIF can be read</p>"
    assert app.read(str(tmp_path / "text.jpg"), path, "fer7", detector="haar", model=None) == (None, why, None, None)
    assert "<p>taken whole</p>" in text  # nothing was searched
    gone = app.read(str(tmp_path / "gone.jpg"), path, "fer7", **settings)[1]  # type: ignore[arg-type]
    assert gone == "<p>missing – it was removed after five minutes: drop it again</p>"
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((30, 17_000, 3), np.uint8))
    wide = app.read(str(tmp_path / "wide.png"), path, "fer7", **settings)[0]  # type: ignore[arg-type]
    assert wide.shape == ((30 + 40) * 16_383 // 17_000, 16_383, 3)


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_ports_that_are_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main(["--port", port])
    assert ended.value.code == 2 and "give a number from 1 to 65535" in capsys.readouterr().err


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` changes of the process is as before afterwards."""
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    gradios = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
    for name in (*gradios, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("restored")
def test_without_gradio_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert app.main(["--no-browser"]) == 2
    assert capsys.readouterr().err == "app.py: gradio is missing – run: make app, or pip install -r requirements-app.txt\n"


@pytest.mark.usefixtures("restored")
def test_a_port_that_is_taken_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(*_: object, **__: object) -> str:
        raise OSError("Cannot find empty port in range: 7000-7000. You can pass `server_port` to `launch()`.")

    monkeypatch.setattr(app, "build_page", lambda **_: None)
    monkeypatch.setattr(app, "launch", taken)
    assert app.main(["--no-browser", "--port", "7000"]) == 2
    assert capsys.readouterr() == ("", "app.py: port 7000 is taken, or may not be used – give another: --port 8000\n")


def page_with(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> Any:
    """A page without gradio, over the given networks; returns what stands for gradio."""
    gradio = MagicMock()
    gradio.Error = type("Error", (Exception,), {"__init__": lambda self, said, print_exception: None})
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setattr(app, "networks", lambda: found)
    app.build_page(detector="haar", model=None)
    return gradio


def test_without_a_network_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no network here – fetch .*, or train one and run: make export"):
        page_with(monkeypatch, {})


def test_a_network_that_went_away_is_said_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gradio = page_with(monkeypatch, app.networks())
    (choose,) = {
        call.args[0]
        for call in gradio.Dropdown().change.call_args_list
        if len(call.args) == 3 and call.args[2] is gradio.Dropdown()
    }
    with pytest.raises(gradio.Error):
        choose(str(tmp_path / "gone.onnx"))


def test_a_packed_network_of_a_run_is_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name in ("best.onnx", "best_int8.onnx.gz", "best.onnx.data", "best.pth"):
        (tmp_path / "runs" / "mine" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert {name for name in app.networks() if "mine" in name} == {"mine (best)", "mine (best_int8)"}


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is uploaded, its label read from the page, at a desk's and a phone's width; the camera (Chromium's made-up
    one, which shows the same face) gives the same; no other host is asked."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements-app.txt")
    webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    picture = tmp_path / "face.png"
    fixtures = os.environ.get("FACE_FIXTURES")
    if fixtures:
        shutil.copy(Path(fixtures) / "faces" / "astronaut.png", picture)
    else:
        noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        cv2.imencode(".png", noise)[1].tofile(picture)
    page = app.build_page(detector="auto", model=None)
    with socket.socket() as free:
        free.bind((app.HOST, 0))
        port = free.getsockname()[1]
    address = app.launch(page, port=port, browser=False, wait=False)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1200"):
        options.add_argument(flag)
    view = cv2.resize(cv2.imread(str(picture)), (480, 480))  # type: ignore[arg-type]
    (tmp_path / "camera.mjpeg").write_bytes(cv2.imencode(".jpg", view)[1].tobytes() * 10)
    options.add_argument(f"--use-file-for-fake-video-capture={tmp_path / 'camera.mjpeg'}")
    for flag in ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options)
    try:
        driver.get(address)
        wait_for(lambda: driver.find_elements("css selector", "#picture input[type=file]"))[0].send_keys(str(picture))
        wait_for(lambda: "face 1: " in driver.find_element("id", "answer").text)
        text = driver.find_element("id", "answer").text
        assert "happy" in text and ("face 1: happy" in text or not fixtures)
        screens = []
        for name, width in (("desk", 1200), ("phone", 420)):
            driver.set_window_size(width, 1200)
            time.sleep(1)
            assert abs(driver.execute_script("return window.innerWidth") - width) < 100  # some windows have a least width
            driver.save_screenshot(str(tmp_path / f"{name}.png"))
            screens.append(read_image(tmp_path / f"{name}.png"))
            wide = driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"the page is wider than a {name}"
        assert all(screen.std() > 20 for screen in screens)
        press(driver, "//*[@id='picture']//button[@title='Remove Image']")
        wait_for(lambda: "face 1: " not in driver.find_element("id", "answer").text)
        for button in ("@aria-label='Capture from camera'", "contains(., 'Access Webcam')", "@aria-label='capture photo'"):
            press(driver, f"//*[@id='picture']//button[{button}]")
        wait_for(lambda: "face" in driver.find_element("id", "answer").text)
        assert "face 1: happy" in driver.find_element("id", "answer").text or not fixtures
        asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = [said["params"]["request"]["url"] for said in asked if said["method"] == "Network.requestWillBeSent"]
        hosts = {urllib.parse.urlsplit(url).hostname for url in urls if url.startswith("http")}
        assert hosts == {"127.0.0.1"}
    finally:
        driver.quit()
        page.close()


def press(driver: Any, button: str) -> None:
    """Press a button, by its XPath, as soon as it is there."""
    wait_for(lambda: driver.find_elements("xpath", button))[0].click()


def wait_for(what: Any, seconds: float = 60.0) -> Any:
    """The first true answer of a function; fails after some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("the page did not get there")
