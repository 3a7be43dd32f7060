"""From files of every kind to network input: what is read, what is refused and with which word, and what a network sees."""

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faces
from faces import Face, ImageError, Preprocess, crop_face, haar_faces, image_fault, looks_like_crop, read_image

import cv2
import numpy as np
import pytest
from PIL import Image

FORMATS = [
    extension
    for extension in ("jpg", "png", "bmp", "webp", "gif", "tiff")
    if extension != "gif" or cv2.haveImageWriter("x.gif")  # OpenCV before 4.11 knows no GIF
]
RED = (200, 20, 10)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A smooth coloured picture, RGB (40, 60, 3), that compresses as photos do."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (60, 40), interpolation=cv2.INTER_CUBIC)


def write(path: Path, rgb: np.ndarray) -> Path:
    """Write a picture with OpenCV, in the format of the path's extension."""
    encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert encoded
    path.write_bytes(data.tobytes())
    return path


def plain(colour: tuple[int, ...], *, height: int = 4, width: int = 6, dtype: type = np.uint8) -> np.ndarray:
    """A picture of one colour (H, W, len(colour))."""
    return np.full((height, width, len(colour)), colour, dtype=dtype)


def assert_picture(image: np.ndarray, shape: tuple[int, int]) -> None:
    assert image.dtype == np.uint8 and image.shape == (*shape, 3)


# --- which files are images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", FORMATS)
def test_good_files_pass_and_keep_their_colours(tmp_path: Path, photo: np.ndarray, extension: str) -> None:
    path = write(tmp_path / f"a.{extension}", photo)
    assert image_fault(path) is None
    assert image_fault(path, decode=True) is None
    image = read_image(path)
    assert_picture(image, (40, 60))
    # Lossless formats exactly; JPEG and GIF's palette nearly: red and blue exchanged would differ by far more.
    allowed = {"jpg": 4.0, "gif": 16.0}.get(extension, 0.0)
    assert np.abs(image.astype(int) - photo).mean() <= allowed < np.abs(photo[:, :, ::-1].astype(int) - photo).mean()


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, photo: np.ndarray, extension: str, kept: float) -> None:
    whole = write(tmp_path / f"a.{extension}", np.tile(photo, (4, 4, 1))).read_bytes()
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    if extension == "tiff":  # it has no end marker and no length: only decoding shows it
        assert image_fault(path) is None
        assert image_fault(path, decode=True) == "cannot be decoded"
    else:
        assert image_fault(path) == "truncated"
    with pytest.raises(ImageError, match=r"^(cannot be decoded)$" if extension == "tiff" else r"^truncated$"):
        read_image(path)


@pytest.mark.parametrize("extension", ["jpg", "png", "gif"])
@pytest.mark.parametrize("padding", [1, 100, 1000])
def test_padding_behind_the_end_is_no_fault(tmp_path: Path, photo: np.ndarray, extension: str, padding: int) -> None:
    if extension not in FORMATS:
        pytest.skip("this OpenCV knows no GIF")
    path = write(tmp_path / f"a.{extension}", photo)
    before = read_image(path)
    path.write_bytes(path.read_bytes() + bytes(padding))
    assert image_fault(path) is None
    assert np.array_equal(read_image(path), before)


def test_a_film_behind_a_jpeg_is_no_fault(tmp_path: Path, photo: np.ndarray) -> None:
    path = write(tmp_path / "motion.jpg", photo)
    before, content = read_image(path), path.read_bytes()
    path.write_bytes(content + b"ftypmp42" + bytes(200_000))
    assert image_fault(path) is None and np.array_equal(read_image(path), before)
    thumbnail = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content  # its end marker is not the picture's
    cut = content[:2] + thumbnail + b"\xff" + content[2:-200]
    path.write_bytes(cut + bytes(2000))
    assert image_fault(path) == "truncated"
    path.write_bytes(content[:2] + thumbnail + b"\xff" + content[2:] + bytes(2000))
    assert image_fault(path) is None


def test_what_is_left_of_a_larger_file_behind_a_png_is_no_fault(tmp_path: Path, photo: np.ndarray) -> None:
    path = write(tmp_path / "cropped.png", photo)
    before, content = read_image(path), path.read_bytes()
    path.write_bytes(content + bytes(range(256)) * 20)
    assert image_fault(path) is None and np.array_equal(read_image(path), before)
    path.write_bytes(content[:-12] + bytes(range(256)) * 20)
    assert image_fault(path) == "truncated"


def test_files_larger_than_any_picture_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(b"BM\xff\x00\x00\x00" + bytes(2_000_000))
    assert image_fault(path) is None
    monkeypatch.setattr(faces, "FILE_MAX_BYTES", 2_000_000)
    assert image_fault(path) == "larger than 2 MB"
    with pytest.raises(ImageError, match="larger than 2 MB"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty"),
        (b"x", "not an image"),
        (b"<html><body>404 Not Found</body></html>", "not an image"),
        (b"\x00" * 5000, "not an image"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", "not an image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 3000, "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"RIFF\xff\x00\x00\x00WEBPVP8 ", "truncated"),
        (b"BM\xff\x00\x00\x00", "truncated"),
        (b"GIF89a" + b";" * 20 + b"data", "truncated"),
        (b"\xff\xd8\xff\xe0junk\xff\xd9", "cannot be decoded"),
        (b"II*\x00junk", "cannot be decoded"),
        (b"MM\x00*", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert image_fault(path, decode=True) == fault
    assert image_fault(path) == (None if fault == "cannot be decoded" else fault)
    with pytest.raises(ImageError, match=f"^{fault}$"):
        read_image(path)
    assert "[" not in capfd.readouterr().err  # OpenCV's own log lines


def test_a_png_chunk_beyond_the_end_is_refused_at_once(tmp_path: Path, photo: np.ndarray) -> None:
    path = write(tmp_path / "a.png", photo)
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4
    path.write_bytes(content[:at] + (0x6A000000).to_bytes(4, "big") + content[at + 4 :])  # OpenCV would take 1.8 GB for it
    started = time.perf_counter()
    with pytest.raises(ImageError, match=r"^truncated$"):
        read_image(path)
    assert time.perf_counter() - started < 0.2
    assert image_fault(path) is None and image_fault(path, decode=True) == "cannot be decoded"


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "plain.jpg").write_bytes(b"x")
    named = {"nothing.jpg": "missing", "folder.jpg": "not a file", "no/such/folder/a.jpg": "missing"}
    for name, fault in named.items():
        assert image_fault(tmp_path / name) == fault
        assert image_fault(str(tmp_path / name)) == fault
        with pytest.raises(ImageError, match=f"^{fault}$"):
            read_image(tmp_path / name)
    assert image_fault("") == "missing"
    assert image_fault(tmp_path / "plain.jpg" / "a.jpg") in ("unreadable", "missing")  # Windows says missing
    assert image_fault(tmp_path / ("a" * 300 + ".jpg")) in ("unreadable", "missing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    program = "import sys, faces; print(faces.image_fault(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "pipe.jpg")],
        capture_output=True, text=True, timeout=20, cwd=Path(faces.__file__).parent, check=True,
    )  # fmt: skip
    assert run.stdout == "not a file\n"


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = write(tmp_path / "a.png", photo)
    path.chmod(0)
    assert image_fault(path) == "unreadable"
    with pytest.raises(ImageError, match="unreadable"):
        read_image(path)


# --- pictures of every kind ---------------------------------------------------------------------------------------------


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(grey).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert_picture(image, (4, 6))
    assert all(np.array_equal(image[:, :, channel], grey) for channel in range(3))


def test_16_bit_becomes_8_bit(tmp_path: Path) -> None:
    levels = np.array([[0x0000, 0x8080, 0xFFFF]], dtype=np.uint16)  # 257 × 0, 128, 255
    cv2.imwrite(str(tmp_path / "grey.png"), levels)
    assert read_image(tmp_path / "grey.png")[:, :, 1].tolist() == [[0, 128, 255]]
    cv2.imwrite(str(tmp_path / "colour.png"), np.dstack([levels, levels * 0, levels[:, ::-1]]))  # blue, green, red
    assert read_image(tmp_path / "colour.png").tolist() == [[[255, 0, 0], [128, 0, 128], [0, 0, 255]]]


# Laid on white at an opacity of 51/255 = 1/5: red 200/5 + 255·4/5 = 244, green 20/5 + 204 = 208, blue 10/5 + 204 = 206.
ON_WHITE = [244, 208, 206]


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_transparent_pictures_are_laid_on_white(tmp_path: Path, extension: str) -> None:
    picture = plain((*RED, 51))
    picture[0, :, 3] = 0  # transparent: white, whatever colour stands under it
    picture[1, :, 3] = 255
    options: dict[str, Any] = {"lossless": True, "exact": True} if extension == "webp" else {}
    Image.fromarray(picture).save(tmp_path / f"a.{extension}", **options)
    image = read_image(tmp_path / f"a.{extension}")
    assert_picture(image, (4, 6))
    assert image[:, 0].tolist() == [[255, 255, 255], list(RED), ON_WHITE, ON_WHITE]


def test_16_bit_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    bgra = plain((*RED[::-1], 51), dtype=np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), bgra)
    image = read_image(tmp_path / "a.png")
    assert_picture(image, (4, 6))
    assert image[0, 0].tolist() == ON_WHITE


def test_large_transparent_pictures_are_laid_on_white_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (23, 7, 4), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr(faces, "STRIP_ROWS", 5)
    share = picture[:, :, 3:] / 255
    expected = picture[:, :, :3] * share + 255 * (1 - share)
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() < 0.51


def test_short_memory_is_a_fault_of_that_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    Image.fromarray(plain((*RED, 51))).save(tmp_path / "a.png")
    monkeypatch.setattr(faces, "lay_on_white", short)
    with pytest.raises(ImageError, match="too large for this machine's memory"):
        read_image(tmp_path / "a.png")


def test_profiles_that_libpng_complains_of_are_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(plain(RED)).save(tmp_path / "a.png", icc_profile=b"no profile at all" * 10)
    assert b"iCCP" in (tmp_path / "a.png").read_bytes()
    cv2.imdecode(np.fromfile(tmp_path / "a.png", np.uint8), cv2.IMREAD_COLOR)
    assert "iCCP" in capfd.readouterr().err  # or there is nothing to pass over
    assert np.array_equal(read_image(tmp_path / "a.png"), plain(RED))
    assert capfd.readouterr().err == ""


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    Image.fromarray(plain((100, 51)), "LA").save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert_picture(image, (4, 6))
    assert image[0, 0].tolist() == [224, 224, 224]  # 100/5 + 204


def test_palette_pictures_with_and_without_transparency(tmp_path: Path) -> None:
    picture = plain(RED)
    picture[:, 3:] = (0, 0, 255)
    palette = Image.fromarray(picture).quantize(2)
    palette.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)
    palette.save(tmp_path / "transparent.png", transparency=palette.getpixel((0, 0)))
    picture[:, :3] = 255
    assert np.array_equal(read_image(tmp_path / "transparent.png"), picture)


def test_one_bit_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[255] * 3, [0] * 3, [255] * 3]]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.fromarray(plain(RED, height=16, width=16)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert_picture(image, (16, 16))
    assert np.abs(image.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("extension", ["gif", "webp"])
def test_the_first_frame_of_an_animation(tmp_path: Path, extension: str) -> None:
    if extension not in FORMATS:
        pytest.skip("this OpenCV knows no GIF")
    first, *others = (Image.fromarray(plain(colour)) for colour in (RED, (0, 0, 255), (0, 255, 0)))
    options: dict[str, Any] = {"lossless": True} if extension == "webp" else {}
    first.save(tmp_path / f"a.{extension}", save_all=True, append_images=others, **options)
    assert np.array_equal(read_image(tmp_path / f"a.{extension}"), plain(RED))


# What a camera stores for each EXIF orientation, so that the picture is upright once the tag is obeyed (EXIF 2.32, 0x0112).
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image),  # the camera lay on its side: a quarter turn clockwise puts it upright
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


def four_corners() -> np.ndarray:
    """RGB (32, 48, 3) with another colour in each quarter: no turn or mirror of it is itself."""
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24], image[16:, 24:] = RED, (0, 255, 0), (0, 0, 255), (255, 255, 0)
    return image


@pytest.mark.parametrize("orientation", list(STORED))
def test_exif_orientation_of_jpeg(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](four_corners()))
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    image = read_image(tmp_path / "a.jpg")
    assert_picture(image, (32, 48))
    assert np.abs(image.astype(int) - four_corners()).max() <= 8


@pytest.mark.parametrize("orientation", list(STORED))
@pytest.mark.parametrize("extension", ["png", "webp"])
def test_transparency_turns_with_its_picture(tmp_path: Path, extension: str, orientation: int) -> None:
    alpha = np.full((32, 48, 1), 255, dtype=np.uint8)
    alpha[:5, :40] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True, "exact": True} if extension == "webp" else {}
    stored = np.ascontiguousarray(STORED[orientation](np.dstack([four_corners(), alpha])))
    Image.fromarray(stored).save(tmp_path / f"a.{extension}", exif=exif, **options)
    expected = four_corners()
    expected[:5, :40] = 255
    assert np.array_equal(read_image(tmp_path / f"a.{extension}"), expected)


def test_paths_with_spaces_and_letters_of_every_script(tmp_path: Path, photo: np.ndarray) -> None:
    folder = tmp_path / "мои фото – 写真 [1]"
    folder.mkdir()
    assert np.array_equal(read_image(write(folder / "smile 😀 été.png", photo)), photo)
    assert np.array_equal(read_image(write(folder / "no extension.png", photo).rename(folder / "no extension")), photo)


def test_one_pixel(tmp_path: Path) -> None:
    image = read_image(write(tmp_path / "a.png", plain(RED, height=1, width=1)))
    assert image.tolist() == [[list(RED)]]
    assert haar_faces(image) == []
    assert not looks_like_crop(image)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["header", "header beyond any limit", "picture"])
def test_enormous_pictures_are_refused_before_memory_is_taken(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "picture":
        Image.new("1", (20_000, 20_000)).save(path)  # 49 kB that would be 1.2 GB
    else:
        path.write_bytes(png_header(20_000, 20_000) if kind == "header" else png_header(2**31 - 1, 2**31 - 1))
    # In a process of its own, because OpenCV reads its limit when it is loaded and the peak memory is that of a process.
    program = """if True:
        import sys, faces, resource
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            faces.read_image(sys.argv[1])
        except faces.ImageError as error:
            print(error)
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB elsewhere
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit // 2**20)
    """
    pytest.importorskip("resource", reason="peak memory is not known on this platform")
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True, text=True, timeout=60, cwd=Path(faces.__file__).parent, check=False,
        env={key: value for key, value in os.environ.items() if key != "OPENCV_IO_MAX_IMAGE_PIXELS"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    error, grown_mib = run.stdout.splitlines()
    assert error == ("cannot be decoded" if kind == "header beyond any limit" else "larger than 100 million pixels")
    assert int(grown_mib) < 50


def test_the_limit_holds_where_opencv_was_loaded_first(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(ImageError, match="larger than"):
        read_image(write(tmp_path / "a.png", photo))
    monkeypatch.setattr(faces, "MAX_PIXELS", 40 * 60)
    assert_picture(read_image(tmp_path / "a.png"), (40, 60))


def test_random_damage_gives_a_picture_or_an_image_error(tmp_path: Path, photo: np.ndarray) -> None:
    generator = np.random.default_rng(7)
    path = tmp_path / "a"
    outcomes = set()
    for extension in FORMATS:
        whole = np.frombuffer(write(tmp_path / f"a.{extension}", photo).read_bytes(), dtype=np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            where = generator.integers(0, len(whole), size=generator.integers(1, 30))
            damaged[where] = generator.integers(0, 256, size=len(where))
            path.write_bytes(damaged.tobytes())
            try:
                image = read_image(path)
            except ImageError as error:
                outcomes.add("error")
                assert 0 < len(str(error)) < 60 and "\n" not in str(error)
            else:
                outcomes.add("picture")
                assert_picture(image, image.shape[:2])
    assert outcomes == {"error", "picture"}


# --- faces --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (48, 48, True),
        (256, 256, True),
        (257, 257, False),
        (256, 205, True),  # 256 ≤ 1.25 · 205 = 256.25
        (256, 204, False),  # 256 > 1.25 · 204 = 255
        (205, 256, True),
        (204, 256, False),
        (100, 125, True),
        (100, 126, False),
        (16, 16, True),
        (15, 16, False),
        (1, 2, False),
    ],
)
def test_looks_like_crop(height: int, width: int, expected: bool) -> None:
    assert looks_like_crop(np.zeros((height, width, 3), dtype=np.uint8)) is expected


def numbered(height: int, width: int) -> np.ndarray:
    """RGB (H, W, 3) whose pixel at (row, column) is [row, column, 0]."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.uint8)


def test_crop_inside_is_a_slice() -> None:
    image = numbered(100, 120)
    assert np.array_equal(crop_face(image, Face(30, 20, 40, 40, math.nan), 0.0), image[20:60, 30:70])


def test_margin_widens_every_side() -> None:
    image = numbered(100, 120)
    # A quarter of 40 px on every side: 60 px, from 30 − 10 and 20 − 10.
    assert np.array_equal(crop_face(image, Face(30, 20, 40, 40, math.nan), 0.25), image[10:70, 20:80])


def test_longer_side_decides_and_the_centre_stays() -> None:
    image = numbered(100, 120)
    # 20 wide, 40 high: a square of 40 around column 30 + 10 = 40, row 20 + 20 = 40; with margin 0.1 one of 48.
    assert np.array_equal(crop_face(image, Face(30, 20, 20, 40, math.nan), 0.0), image[20:60, 20:60])
    assert np.array_equal(crop_face(image, Face(30, 20, 20, 40, math.nan), 0.1), image[16:64, 16:64])


def test_negative_margin_shrinks_and_leaves_a_pixel() -> None:
    image = numbered(100, 120)
    assert np.array_equal(crop_face(image, Face(30, 20, 40, 40, math.nan), -0.25), image[30:50, 40:60])
    assert crop_face(image, Face(30, 20, 40, 40, math.nan), -0.5).shape == (1, 1, 3)


def test_border_pixels_repeat_outside_the_picture() -> None:
    image = numbered(10, 12)
    corner = crop_face(image, Face(-2, -3, 6, 6, math.nan), 0.0)
    assert corner[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 2]  # rows −3 … 2
    assert corner[0, :, 1].tolist() == [0, 0, 0, 1, 2, 3]  # columns −2 … 3
    opposite = crop_face(image, Face(9, 7, 6, 6, math.nan), 0.0)
    assert opposite[:, 0, 0].tolist() == [7, 8, 9, 9, 9, 9]
    assert opposite[0, :, 1].tolist() == [9, 10, 11, 11, 11, 11]
    reference = cv2.copyMakeBorder(image, 20, 20, 20, 20, cv2.BORDER_REPLICATE)
    whole = crop_face(image, Face(1, 0, 10, 10, math.nan), 1.0)  # 30 px, from column −9 and row −10
    assert np.array_equal(whole, reference[10:40, 11:41])


def test_no_face_in_a_picture_without_contrast() -> None:
    assert haar_faces(plain((128, 128, 128), height=300, width=400)) == []


FACES = {"astronaut.png": 1, "biden.jpg": 1, "obama.jpg": 1, "obama_small.jpg": 1, "pyfeat_multi_face.jpg": 4}
NON_FACES = ("brick.png", "chelsea.png", "coffee.png", "grass.png", "rocket.jpg")


@pytest.fixture(scope="module")
def fixtures() -> Path:
    """The folder of real photos, with faces/ and nonfaces/ in it."""
    folder = os.environ.get("FACE_FIXTURES")
    if not folder:
        pytest.skip("FACE_FIXTURES does not name the folder of real photos")
    return Path(folder)


@pytest.mark.parametrize(("name", "count"), list(FACES.items()))
def test_faces_of_real_photos(fixtures: Path, name: str, count: int) -> None:
    image = read_image(fixtures / "faces" / name)
    found = haar_faces(image)
    assert len(found) == count
    areas = [face.w * face.h for face in found]
    assert areas == sorted(areas, reverse=True)
    for face in found:
        assert face.w >= 40 and face.x >= 0 and face.y >= 0 and math.isnan(face.score)
        assert face.x + face.w <= image.shape[1] and face.y + face.h <= image.shape[0]
        assert crop_face(image, face, 0.0).shape == (face.h, face.w, 3)


@pytest.mark.parametrize("name", NON_FACES)
def test_no_faces_where_there_are_none(fixtures: Path, name: str) -> None:
    assert haar_faces(read_image(fixtures / "nonfaces" / name)) == []


def test_the_astronauts_face_is_where_it_is(fixtures: Path) -> None:
    face = haar_faces(read_image(fixtures / "faces" / "astronaut.png"))[0]
    assert face.x < 224 < face.x + face.w and face.y < 115 < face.y + face.h  # the tip of her nose
    assert 80 <= face.w <= 150


# --- YuNet and alignment ------------------------------------------------------------------------------------------------

TEMPLATE = (0.3, 0.35, 0.7, 0.35, 0.5, 0.55, 0.35, 0.75, 0.65, 0.75)
YUNET_FACES = {"astronaut.png": 1, "biden.jpg": 1, "obama.jpg": 1, "obama_small.jpg": 1, "pyfeat_multi_face.jpg": 5}


def places(template: tuple[float, ...], corner: np.ndarray, side: float, degrees: float = 0.0) -> np.ndarray:
    """Where the landmarks lie in a picture, (5, 2), for a square from `corner`, turned by `degrees`."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return corner + side * np.array(template).reshape(5, 2) @ turn.T


def test_a_face_that_lies_as_the_template_is_cut_out_as_it_is() -> None:
    image = numbered(100, 120)
    assert np.array_equal(faces.align_face(image, places(TEMPLATE, np.array([30, 20]), 40), TEMPLATE), image[20:60, 30:70])


def test_a_face_turned_by_a_quarter_is_turned_back() -> None:
    image = numbered(100, 120)
    found = faces.align_face(image, places(TEMPLATE, np.array([70, 20]), 40, 90), TEMPLATE)  # its top points to the right
    assert np.array_equal(found, np.rot90(image[20:60, 30:70]))


def test_landmarks_come_to_their_places_whatever_turn_and_size() -> None:
    """Colours tell where a place of the crop comes from: red is the row, green the column, both in pixels."""
    image = numbered(250, 250)
    generator = np.random.default_rng(0)
    for _ in range(40):
        side, degrees = generator.uniform(30, 90), generator.uniform(-180, 180)
        landmarks = places(TEMPLATE, generator.uniform(110, 140, 2), side, degrees)
        crop = faces.align_face(image, landmarks, TEMPLATE)
        assert crop.shape[0] == crop.shape[1] == round(side)
        for (x, y), (across, down) in zip(landmarks, np.array(TEMPLATE).reshape(5, 2), strict=True):
            pixel = crop[int(down * len(crop)), int(across * len(crop))].astype(float)
            assert abs(pixel[1] + 0.5 - x) < 1.3 and abs(pixel[0] + 0.5 - y) < 1.3


def test_landmarks_that_do_not_fit_are_met_as_nearly_as_can_be() -> None:
    """Against a search over turn, size and place; a mirrored face is not mirrored back."""
    from scipy.optimize import minimize

    generator = np.random.default_rng(1)
    template = np.array(TEMPLATE).reshape(5, 2)
    image = numbered(250, 250)
    for mirrored in (False, True):
        target = places(TEMPLATE, np.array([60, 70]), 80, 25) + generator.normal(0, 4, (5, 2))
        target = np.array([240, 0]) + target * np.array([-1, 1]) if mirrored else target

        def distance(values: np.ndarray, target: np.ndarray = target) -> float:
            return float(((places(TEMPLATE, values[:2], values[2], values[3]) - target) ** 2).sum())

        tries = [
            minimize(distance, [100, 100, 80, start], method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-9})
            for start in (-90, 0, 90, 180)
        ]
        best = min(tries, key=lambda found: found.fun).x
        crop = faces.align_face(image, target, TEMPLATE)
        assert len(crop) == pytest.approx(abs(best[2]), abs=0.6)
        middle = places(tuple(np.full(10, 0.5)), best[:2], best[2], best[3])[0]
        pixel = crop[len(crop) // 2, len(crop) // 2].astype(float)
        assert abs(pixel[1] + 0.5 - middle[0]) < 1.6 and abs(pixel[0] + 0.5 - middle[1]) < 1.6
    assert template.shape == (5, 2)


def test_a_crop_is_aligned_where_both_know_landmarks() -> None:
    image = numbered(100, 120)
    face = Face(30, 20, 40, 40, 0.9, tuple(map(tuple, places(TEMPLATE, np.array([35, 25]), 40).tolist())))
    plain_box, aligned = Preprocess(48, 1, (0.5,), (0.5,)), Preprocess(48, 1, (0.5,), (0.5,), landmarks=TEMPLATE)
    assert np.array_equal(plain_box.crop(image, face), image[20:60, 30:70])
    assert np.array_equal(aligned.crop(image, face), image[25:65, 35:75])
    assert np.array_equal(aligned.crop(image, face._replace(landmarks=None)), image[20:60, 30:70])
    assert Preprocess.from_dict(json.loads(json.dumps(aligned.to_dict()))) == aligned
    with pytest.raises(ValueError, match="ten numbers"):
        Preprocess(48, 1, (0.5,), (0.5,), landmarks=(0.5, 0.5))


@pytest.fixture(scope="module")
def yunet() -> faces.YuNet:
    """The real detector."""
    if "YUNET" not in os.environ:
        pytest.skip("YUNET does not name YuNet's ONNX file")
    return faces.YuNet(os.environ["YUNET"])


@pytest.mark.parametrize(("name", "count"), list(YUNET_FACES.items()))
def test_yunet_finds_the_faces_of_real_photos(fixtures: Path, yunet: faces.YuNet, name: str, count: int) -> None:
    image = read_image(fixtures / "faces" / name)
    found = yunet(image)
    assert len(found) == count
    for face in found:
        assert 0.6 <= face.score <= 1 and face.landmarks is not None
        for x, y in face.landmarks:
            assert face.x - 0.1 * face.w <= x <= face.x + 1.1 * face.w and face.y <= y <= face.y + 1.1 * face.h
        right_eye, left_eye, nose, *mouth = face.landmarks
        assert right_eye[0] < left_eye[0] and right_eye[1] < nose[1] < min(corner[1] for corner in mouth)


@pytest.mark.parametrize("name", NON_FACES)
def test_yunet_finds_no_faces_where_there_are_none(fixtures: Path, yunet: faces.YuNet, name: str) -> None:
    assert yunet(read_image(fixtures / "nonfaces" / name)) == []


def test_yunet_finds_the_same_face_at_any_size(fixtures: Path, yunet: faces.YuNet) -> None:
    image = read_image(fixtures / "faces" / "astronaut.png")
    (small,) = yunet(image)
    (large,) = yunet(cv2.resize(image, (2560, 2560)))  # is searched at half of that
    np.testing.assert_allclose(np.array(large.landmarks) / 5, np.array(small.landmarks), atol=6)  # of 90 px
    assert abs(large.w / 5 - small.w) < 8


def test_which_detector_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faces.make_detector("auto") == (faces.haar_faces, "haar")
    detect, name = faces.make_detector("none")
    assert name == "none" and detect(numbered(50, 50)) == []
    with pytest.raises(faces.DetectorError, match="make detector"):
        faces.make_detector("yunet")
    with pytest.raises(
        faces.DetectorError, match=r"none\.onnx is not there – run: make detector, and leave out --detector_model"
    ):
        faces.make_detector("auto", tmp_path / "none.onnx")  # a file that is named must be there
    monkeypatch.setenv("FER_DETECTOR", str(tmp_path / "other.onnx"))
    with pytest.raises(faces.DetectorError, match=r"other\.onnx, which FER_DETECTOR names, is not there – unset it"):
        faces.make_detector("auto")
    assert faces.make_detector("haar")[1] == "haar"
    (tmp_path / "other.onnx").write_text("no network", encoding="utf-8")
    with pytest.raises(faces.DetectorError, match="FER_DETECTOR names, is not YuNet's ONNX file – unset it"):
        faces.make_detector("auto")
    another = Path(faces.__file__).parent / "weights" / "fernet_votes.onnx.gz"
    with pytest.raises(faces.DetectorError, match="is not YuNet's"):
        faces.make_detector("auto", another)
    for name in ("haar", "none"):
        with pytest.raises(faces.DetectorError, match=f"YuNet's file, which --detector {name} does not use"):
            faces.make_detector(name, another)


def test_the_detector_is_fetched_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.onnx").write_bytes(b"the file")
    out = tmp_path / "new" / "yunet.onnx"
    monkeypatch.setattr(faces, "YUNET_ADDRESS", (tmp_path / "there.onnx").as_uri())
    assert faces.main([str(out)]) == 2
    error = capsys.readouterr().err
    assert "checksum" in error and "FER_DETECTOR" in error and error.count("\n") == 1 and not out.parent.exists()
    monkeypatch.setattr(faces, "YUNET_SHA256", hashlib.sha256(b"the file").hexdigest())
    assert faces.main([str(out)]) == 0 and out.read_bytes() == b"the file" and len(list(out.parent.iterdir())) == 1
    monkeypatch.setattr(faces, "YUNET_ADDRESS", (tmp_path / "gone.onnx").as_uri())
    assert faces.main([str(out)]) == 2 and "cannot be read" in capsys.readouterr().err


# --- preprocessing ------------------------------------------------------------------------------------------------------


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (200, 300), (97, 64), (49, 49), (20, 20), (47, 31), (48, 20), (20, 200), (1, 1)]
)
def test_preprocess_is_resize_normalize_totensor(
    monkeypatch: pytest.MonkeyPatch, channels: int, height: int, width: int
) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    preprocess = Preprocess(48, 3, MEAN, STD) if channels == 3 else Preprocess(48, 1, (0.5,), (0.25,))
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shrinks = max(height, width) > 48
    reference = A.Compose(
        [
            A.Resize(48, 48, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
            A.Normalize(mean=preprocess.mean, std=preprocess.std, max_pixel_value=255.0),
            A.ToTensorV2(),
        ]
    )
    seen = image if channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    expected = reference(image=seen)["image"].numpy()
    result = preprocess(image)
    assert result.shape == expected.shape == (channels, 48, 48)
    assert result.dtype == np.float32 and result.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_normalisation_by_hand() -> None:
    result = Preprocess(2, 3, mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.1))(plain((255, 0, 51), height=2, width=2))
    # (1 − 0.5)/0.5 = 1; (0 − 0.4)/0.2 = −2; (51/255 − 0.2)/0.1 = 0. Red first.
    np.testing.assert_allclose(result[:, 0, 0], [1.0, -2.0, 0.0], rtol=0, atol=1e-6)
    assert np.ptp(result, axis=(1, 2)).tolist() == [0.0, 0.0, 0.0]


def test_colour_to_grey_and_grey_to_colour() -> None:
    to_grey = Preprocess(1, 1, mean=(0.0,), std=(1.0,))
    # ITU-R BT.601: 0.299 · 200 + 0.587 · 20 + 0.114 · 10 = 72.68
    assert to_grey(plain(RED, height=1, width=1))[0, 0, 0] * 255 == pytest.approx(73, abs=1e-3)
    grey = np.array([[0, 255], [128, 64]], dtype=np.uint8)
    expected = grey / 255.0
    np.testing.assert_allclose(Preprocess(2, 1, (0.0,), (1.0,))(grey), expected[None], rtol=0, atol=1e-6)
    np.testing.assert_allclose(Preprocess(2, 3, (0.0,) * 3, (1.0,) * 3)(grey), [expected] * 3, rtol=0, atol=1e-6)


def test_halving_averages_and_enlarging_interpolates() -> None:
    row = np.array([[0, 100, 200, 40]] * 4, dtype=np.uint8)
    shrunk = Preprocess(2, 1, (0.0,), (1 / 255,))(row)
    np.testing.assert_allclose(shrunk[0], [[50, 120]] * 2, rtol=0, atol=1e-3)
    # Twice the width: samples a quarter pixel beside the old centres, the ends repeated.
    enlarged = Preprocess(4, 1, (0.0,), (1 / 255,))(np.array([[0, 100]] * 2, dtype=np.uint8))
    np.testing.assert_allclose(enlarged[0], [[0, 25, 75, 100]] * 4, rtol=0, atol=1e-3)


def test_preprocess_leaves_its_input_alone() -> None:
    image = numbered(48, 48)
    Preprocess(48, 3, MEAN, STD)(image)
    assert np.array_equal(image, numbered(48, 48))


def test_network_input_can_be_seen_again(photo: np.ndarray) -> None:
    for preprocess in (Preprocess(40, 3, MEAN, STD), Preprocess(40, 3, MEAN, STD, order="bgr")):
        resized = cv2.resize(photo, (40, 40), interpolation=cv2.INTER_AREA)
        assert np.abs(preprocess.undo(preprocess(photo)).astype(int) - resized).max() <= 1
    grey = Preprocess(24, 1, (0.5,), (0.25,))
    seen = grey.undo(grey(photo))
    assert seen.shape == (24, 24, 3) and np.array_equal(seen[:, :, 0], seen[:, :, 2])


@pytest.mark.parametrize(
    "preprocess", [Preprocess(224, 3, MEAN, STD, margin=0.15), Preprocess(48, 1, (0.50774,), (0.25501,))]
)
def test_round_trip_through_dict_and_json(preprocess: Preprocess) -> None:
    values = preprocess.to_dict()
    assert values.keys() == {"size_px", "channels", "mean", "std", "margin", "keep", "order", "landmarks"}
    assert Preprocess.from_dict(values) == preprocess
    back = Preprocess.from_dict(json.loads(json.dumps(values)))
    assert back == preprocess and hash(back) == hash(preprocess)  # tuples again, not lists
    assert values == preprocess.to_dict()  # untouched


def test_margin_may_be_left_out() -> None:
    values = Preprocess(48, 1, (0.5,), (0.5,), margin=0.3).to_dict()
    del values["margin"]
    assert Preprocess.from_dict(values).margin == 0.0


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (2, (0.5, 0.5), (0.5, 0.5)),
        (3, (0.5,), (0.5,)),
        (1, (0.5, 0.5), (0.5,)),
        (1, (0.5,), (0.5,) * 3),
        (4, (0.0,) * 4, (1.0,) * 4),
    ],
)
def test_wrong_numbers_of_values_are_refused(channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{channels} channels need as many values in mean"):
        Preprocess(48, channels, mean, std)


def test_preprocess_keeps_the_central_share():
    image = np.arange(48 * 48, dtype=np.int64).reshape(48, 48) % 251
    image = image.astype(np.uint8)
    whole = faces.Preprocess(size_px=44, channels=1, mean=(0.0,), std=(1.0,))
    kept = faces.Preprocess(size_px=44, channels=1, mean=(0.0,), std=(1.0,), keep=44 / 48)
    np.testing.assert_array_equal(kept(image), whole(image[2:46, 2:46]))
    assert faces.centre(np.zeros((1, 3)), 0.1).shape == (1, 1)  # never nothing
    for keep in (0.0, 1.1):
        with pytest.raises(ValueError, match="keep"):
            faces.Preprocess(size_px=44, channels=1, mean=(0.0,), std=(1.0,), keep=keep)
    assert faces.Preprocess.from_dict(kept.to_dict()) == kept
