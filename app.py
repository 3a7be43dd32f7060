"""A web page on this machine that reads the faces of a picture: drop one, paste one, or use the camera.

    make app                          # installs what only the page needs, then opens http://127.0.0.1:7860
    python app.py --port 8000 --no-browser

Nothing leaves the machine: the page is served to it alone, without analytics, share links or fonts from elsewhere; pictures
are limited in size and removed after five minutes, and all of them when the program ends.
"""

import argparse
import csv
import html
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from faces import DETECTORS, DetectorError, ImageError, make_detector, read_image

from answers import DETECTOR_NAMES, HINTS, Answer, FacePrediction, annotate, at_most, columns, rows
from command_line import Parser, line_of
from figures import COLOURS
from labels import LABEL_SETS
from onnx_network import ModelError, OnnxNetwork, bare_name, is_onnx
from predict import EmotionPredictor, shipped

HOST = "127.0.0.1"
UPLOAD_MAX = "20mb"
WEBP_MAX_PX = 16383  # of the longer side; the page shows pictures as WebP
CLEARED_S, KEPT_S = 60, 240  # how often the temporary folder is cleared, of pictures that are so old: five minutes at most
WITHOUT_GRADIO = "gradio is missing – run: make app, or pip install -r requirements-app.txt"
STYLE = """
.face {margin: 0 0 1.2em 0}
.face h4 {margin: 0 0 .3em 0}
.bar {display: grid; grid-template-columns: 5.5em 1fr 3.5em; gap: .5em; align-items: center; margin: .15em 0}
.bar > div {background: rgba(128,128,128,.18); border-radius: 3px; height: .9em}
.bar > div > div {border-radius: 3px; height: .9em}
.bar > span:last-child {text-align: right; font-variant-numeric: tabular-nums}
"""


def networks() -> dict[str, str]:
    """The ONNX files to choose from, by name: the shipped ones, then those of the runs."""
    own = sorted(path for path in Path("runs").glob("*/*.onnx*") if is_onnx(path))
    return {name: str(path) for name, path in shipped().items()} | {
        f"{path.parent.name} ({bare_name(path)})": str(path) for path in own
    }


@cache
def predictor_of(path: str, label_set: str | None, detector: str, model: str | None) -> EmotionPredictor:
    """The predictor of a network's file, made once."""
    return EmotionPredictor(path, label_set=label_set, detector=detector, detector_model=model)


def heads_of(path: str) -> list[tuple[str, str]]:
    """The label sets that a network's file has a head for, in words and by name; the last is predict.py's default."""
    return [(f"{labels.name}: {', '.join(labels.names)}", labels.name) for labels in OnnxNetwork(path).heads.values()]


def bars(prediction: FacePrediction, number: int) -> str:
    """One face as HTML: its label, a bar for each probability, and its place in the plane of valence and arousal."""
    lines = []
    for name, share in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
        width = f"{100 * share:.1f}%"
        colour = COLOURS.get(name, "#0072B2").replace("#000000", "currentColor")  # seen on a dark page, too
        bar = f'<div><div style="width:{width};background:{colour}"></div></div>'
        lines.append(f'<div class="bar"><span>{html.escape(name)}</span>{bar}<span>{width}</span></div>')
    title = f"face {number}: {html.escape(prediction.label)} {prediction.probabilities[prediction.label]:.0%}"
    plane = (
        "" if prediction.valence is None or prediction.arousal is None else plane_svg(prediction.valence, prediction.arousal)
    )
    return f'<div class="face"><h4>{title}</h4>{"".join(lines)}{plane}</div>'


def plane_svg(valence: float, arousal: float) -> str:
    """The plane of valence (to the right) and arousal (upwards), both from −1 to 1, with one point."""
    x, y = 100 + 90 * valence, 100 - 90 * arousal
    return (
        '<svg viewBox="-30 -12 260 236" width="220" role="img" aria-label="valence and arousal">'
        '<g fill="none" stroke="currentColor" stroke-opacity=".4"><rect x="10" y="10" width="180" height="180"/>'
        '<path d="M10 100H190M100 10V190"/></g><g font-size="12" fill="currentColor" text-anchor="middle">'
        '<text x="100" y="207">valence</text><text x="-4" y="100" transform="rotate(-90 -4 100)">arousal</text>'
        '<text x="10" y="207">−1</text><text x="190" y="207">1</text></g>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="#D55E00"/>'
        '<text x="100" y="222" font-size="12" fill="currentColor" text-anchor="middle">'
        f"{valence:+.2f}, {arousal:+.2f}</text></svg>"
    )


def table_of(result: Answer, labels: tuple[str, ...]) -> list[list[Any]]:
    """The answer as the rows of a table, header first, without what is the same for all."""
    return [columns(labels)[2:], *(row[2:] for row in rows(0, result, labels))]


def read(picture: str | None, path: str, label_set: str, *, detector: str, model: str | None) -> tuple[Any, ...]:
    """What the page shows of a picture's file: the picture with boxes, the bars, the table and a file of it; of one that
    cannot be read, why."""
    if picture is None:
        return None, "", None, None
    predictor = predictor_of(path, label_set if label_set in LABEL_SETS else None, detector, model)
    try:
        image = read_image(picture)
        faces, detected = predictor.predict(image)
    except ImageError as error:
        hint = HINTS.get(str(error)) if Path(picture).exists() else "it was removed after five minutes: drop it again"
        return None, f"<p>{error}{f' – {hint}' if hint else ''}</p>", None, None
    result = Answer("picture", detected, faces, None)
    said = "".join(bars(prediction, number) for number, prediction in enumerate(faces, start=1))
    if not faces:
        said = "<p>no face found</p>"
    elif not detected:
        why = "" if predictor.detector == "none" else "no face found, but the picture looks like one: "
        said = f"<p>{why}taken whole</p>" + said
    if predictor.detector == "haar":
        said += f"<p><small>faces found by {DETECTOR_NAMES['haar']}</small></p>"
    header, *lines = table_of(result, predictor.labels.names)
    target = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "faces.csv"
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])
    drawn = at_most(WEBP_MAX_PX, annotate(image, faces, boxes=detected))
    return drawn, said, {"headers": header, "data": lines}, str(target)


def build_page(*, detector: str, model: str | None) -> Any:
    """The page. Raises ModuleNotFoundError without gradio, ModelError without a network."""
    import gradio as gr

    choices = networks()
    if not choices:
        raise ModelError("there is no network here – fetch weights/student.onnx.gz, or train one and run: make export")
    first = next(iter(choices.values()))

    @contextmanager
    def errors_shown() -> Iterator[None]:
        try:
            yield
        except (ModelError, DetectorError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def answer(picture: str | None, path: str, label_set: str) -> tuple[Any, ...]:
        with errors_shown():
            shown = read(picture, path, label_set, detector=detector, model=model)
        return *shown, gr.Column(visible=shown[-1] is not None)

    def choose(path: str) -> Any:
        with errors_shown():
            heads = heads_of(path)
        return gr.Dropdown(choices=heads, value=heads[-1][1], visible=len(heads) > 1)

    with gr.Blocks(title="FER", analytics_enabled=False, delete_cache=(CLEARED_S, KEPT_S), fill_width=True) as page:
        gr.Markdown("# Expressions in a picture\nDrop one, paste one, or use the camera. Nothing leaves this machine.")
        with gr.Row():
            with gr.Column():
                image = gr.Image(
                    label="picture", sources=["upload", "clipboard", "webcam"], type="filepath", elem_id="picture"
                )
                # As it was sent: gradio's own reading fails on animated, 16-bit and transparent pictures.
                image.preprocess = lambda sent: None if sent is None else sent.path
                network = gr.Dropdown(choices=list(choices.items()), value=first, label="network", visible=len(choices) > 1)
                heads = heads_of(first)
                labels = gr.Dropdown(choices=heads, value=heads[-1][1], label="classes", visible=len(heads) > 1)
            with gr.Column():
                drawn = gr.Image(label="faces", interactive=False, buttons=["download", "fullscreen"], elem_id="drawn")
                said = gr.HTML(elem_id="answer")
        with gr.Column(visible=False) as below:
            table = gr.Dataframe(label="table", interactive=False, wrap=False)
            download = gr.DownloadButton("download the table", size="sm")
        shown = [drawn, said, table, download, below]
        chosen = network.change(choose, network, labels, api_visibility="private")
        for event in (image.change, labels.input, chosen.then):  # of another network once its classes are there
            event(answer, [image, network, labels], shown, show_progress="minimal", api_visibility="private")
    return page


def launch(page: Any, *, port: int, browser: bool, wait: bool) -> str:
    """Serve the page to this machine and say where; returns its address. With `wait` it goes on until Ctrl-C. Raises OSError
    where it cannot be served."""
    import gradio as gr

    local = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    _, address, _ = page.launch(
        server_name=HOST, server_port=port, share=False, inbrowser=browser, prevent_thread_lock=True, quiet=True,
        max_file_size=UPLOAD_MAX, footer_links=[], enable_monitoring=False, ssr_mode=False, theme=local, css=STYLE,
    )  # fmt: skip
    print(f"{address} – Ctrl-C ends it", flush=True)
    if wait:
        page.block_thread()
    return address


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="1 to 65535 (default: %(default)s)")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open the page (default)")
    parser.add_argument("--detector", choices=DETECTORS, default="auto", help="as predict.py")
    parser.add_argument("--detector_model", "--detector-model", metavar="ONNX", help="YuNet's file (default: as predict.py)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; status 2 with one line where that cannot be done."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: give a number from 1 to 65535")
    # Read by gradio when it is loaded, which asks its own page whether it is there: not by way of a proxy.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))
    for ends in ("SIGTERM", "SIGHUP"):  # so that the pictures go when the program is ended from outside
        if hasattr(signal, ends):
            signal.signal(getattr(signal, ends), lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="fer-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            make_detector(args.detector, args.detector_model)  # so that a lacking file is said now
            page = build_page(detector=args.detector, model=args.detector_model)
            launch(page, port=args.port, browser=args.browser, wait=True)
        except ModuleNotFoundError:
            print(f"app.py: {WITHOUT_GRADIO}", file=sys.stderr)
            return 2
        except (ModelError, DetectorError, OSError) as error:
            taken = "empty port" in str(error)  # gradio's words, with advice that is not for here
            advice = f"port {args.port} is taken, or may not be used – give another: --port {8000 + (args.port == 8000)}"
            print(f"app.py: {advice if taken else line_of(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
