"""From a photo to network input: read an image safely, find the faces, crop them, and `Preprocess` a crop into an array.

Only numpy and OpenCV are used, so that prediction can start without torch.

    python -c "import faces; print(faces.make_detector()[0](faces.read_image('face.jpg')))"
"""

import math
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

# OpenCV reads its own limit once, when it is loaded; a picture above it is refused before memory is taken for it. So this
# script is imported before OpenCV: pyproject.toml has ruff put it first.
MAX_PIXELS = 100_000_000
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import ArrayLike  # noqa: E402

# What is wrong with a file is said by ImageError, in one line.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CROP_SIZES_PX = 16, 256  # a nearly square picture of such a size may be a face crop already
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_ADDRESS = f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{YUNET_FILE}"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_SCORE = 0.6  # below it nothing is a face
SEARCHED_MAX_PX, YUNET_SIDE_MIN_PX = 1280, 64  # of a side
ALIGNED_MAX_PX = 1024  # side of an aligned crop; more than any network sees
DETECTORS = ("auto", "yunet", "haar", "none")
Detector = Callable[[np.ndarray], "list[Face]"]
STRIP_ROWS = 256  # of a transparent picture that are laid on white at a time
TAIL_BYTES = 1024  # the end marker is looked for in so many last bytes: some programs write padding behind it
FILE_MAX_BYTES = 1_000_000_000  # more than MAX_PIXELS of any format take
HAAR = threading.local()  # the cascade of each thread

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# First bytes of each format, and the bytes that must stand near its end (None: the format has no end marker).
SIGNATURES: tuple[tuple[bytes, bytes | None], ...] = (
    (JPEG, b"\xff\xd9"),
    (PNG, b"IEND\xaeB`\x82"),
    (b"BM", None),
    (b"RIFF", None),
    (b"II*\x00", None),
    (b"MM\x00*", None),
    (b"GIF8", b";"),
)


class ImageError(Exception):
    """An image that cannot be read; the message names the reason in a few words, without the path."""


class DetectorError(Exception):
    """A face detector that cannot be used; the message is one line and says what to do next."""


class Face(NamedTuple):
    """One detected face: box in pixels of the picture, detector score (NaN where the detector gives none), landmarks.

    These are five places (x, y) in pixels, or None: the person's right eye, left eye, tip of the nose, right and left corner
    of the mouth.
    """

    x: int
    y: int
    w: int
    h: int
    score: float
    landmarks: tuple[tuple[float, float], ...] | None = None


def image_fault(path: str | os.PathLike[str], *, decode: bool = False) -> str | None:
    """What is wrong with an image file, judged by its size, header and end marker, or None where nothing is.

    Cheap: one open, two reads (but for a JPEG or PNG without its end marker in the last bytes, which is read whole), no
    decoding unless `decode`. Reasons are short and constant, so that they can be counted:
    "missing", "not a file", "unreadable", "empty", "larger than 1000 MB", "not an image", "truncated", "cannot be decoded".
    """
    try:
        # O_NONBLOCK, because opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError):  # Windows refuses to open a folder; ValueError: the name holds a NUL
        folder = os.path.isdir(path) and os.access(path, os.R_OK)  # noqa: PTH112
        return "not a file" if folder else "unreadable"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        size = status.st_size
        head = os.read(descriptor, TAIL_BYTES)
        if size > TAIL_BYTES:
            os.lseek(descriptor, size - TAIL_BYTES, os.SEEK_SET)
            tail = os.read(descriptor, TAIL_BYTES)
        else:
            tail = head
        fault = bytes_fault(head, tail, size)
        for signature, is_whole in ENDS_EARLY.items():
            if fault == "truncated" and head.startswith(signature):
                os.lseek(descriptor, 0, os.SEEK_SET)
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    fault = None if is_whole(file.read()) else fault
    except OSError:
        return "unreadable"
    finally:
        os.close(descriptor)
    if fault is None and decode:
        try:
            read_image(path)
        except ImageError:
            return "cannot be decoded"
    return fault


def bytes_fault(head: bytes, tail: bytes, size: int) -> str | None:
    """The fault of an image of `size` bytes, given its first and last bytes (up to TAIL_BYTES each), or None."""
    if size == 0:
        return "empty"
    if size > FILE_MAX_BYTES:
        return f"larger than {FILE_MAX_BYTES // 1_000_000} MB"
    for signature, end_marker in SIGNATURES:
        if not head.startswith(signature):
            continue
        if signature == b"RIFF":
            if head[8:12] != b"WEBP":
                return "not an image"
            return "truncated" if size < int.from_bytes(head[4:8], "little") + 8 else None
        if signature == b"BM":
            return "truncated" if size < int.from_bytes(head[2:6], "little") else None
        if signature == b"GIF8":  # one byte, which picture data hold too: it must be the last but for padding
            return None if tail.rstrip(b"\0").endswith(b";") else "truncated"
        if end_marker is not None and end_marker not in tail:
            return "truncated"
        return None
    return "not an image"


def jpeg_is_whole(content: bytes) -> bool:
    """Whether the picture of a JPEG has its end marker, wherever: telephones write a film behind it."""
    position = 2
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != b"\xda":  # up to its data
        position += 1
        if content[position : position + 1] != b"\xff":  # which may be repeated before a marker
            position += 1 + int.from_bytes(content[position + 1 : position + 3], "big")
    return content.find(b"\xff\xd9", position) >= 0


def png_chunks(content: bytes) -> Iterator[tuple[bytes, slice]]:
    """The chunks of a PNG up to its end marker: kind and where they say they stand."""
    position, kind = 8, b""
    while position + 8 <= len(content) and kind != b"IEND":
        begin, kind = position, content[position + 4 : position + 8]
        position += 12 + int.from_bytes(content[position : position + 4], "big")  # length, kind, content, checksum
        yield kind, slice(begin, position)


def png_is_whole(content: bytes) -> bool:
    """Whether a PNG has its end marker, wherever: programs that write a smaller one over a larger leave the rest of that."""
    return any(kind == b"IEND" and place.stop <= len(content) for kind, place in png_chunks(content))


ENDS_EARLY = {JPEG: jpeg_is_whole, PNG: png_is_whole}  # pictures that may have other things behind them


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as RGB, uint8 (H, W, 3), upright by its EXIF tag; the first frame of an animation.

    Grey, 16-bit and CMYK pictures become 8-bit RGB; transparent ones are laid on white. Raises `ImageError` where the
    file is missing, no image, truncated, or larger than MAX_PIXELS.
    """
    fault = image_fault(path)
    if fault is not None:
        raise ImageError(fault)
    try:
        # np.fromfile and imdecode, because cv2.imread cannot open paths with non-Latin letters on Windows.
        return decode_image(np.fromfile(path, dtype=np.uint8))
    except OSError as error:
        raise ImageError(f"unreadable ({error.strerror})") from error


def decode_image(data: np.ndarray) -> np.ndarray:
    """Encoded bytes (uint8, (n,)) as an RGB image, uint8 (H, W, 3); see `read_image`. Raises `ImageError`."""
    data = plain_png(data)
    too_large = f"larger than {MAX_PIXELS // 1_000_000} million pixels"
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is None:
            raise ImageError("cannot be decoded")
        if image.shape[0] * image.shape[1] > MAX_PIXELS:  # where OpenCV was loaded before its limit was set
            raise ImageError(too_large)
        alpha = decode_alpha(data, image)
        if alpha is not None:
            lay_on_white(image, alpha)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except cv2.error as error:
        if "MAX_IMAGE_PIXELS" in str(error) or "pixels" in str(error):
            raise ImageError(too_large) from error
        raise ImageError("cannot be decoded") from error
    except MemoryError as error:
        raise ImageError("too large for this machine's memory") from error


def plain_png(data: np.ndarray) -> np.ndarray:
    """A PNG without its colour profile, of which OpenCV makes nothing and libpng prints warnings; other files as they are.

    Raises ImageError where a chunk claims to reach beyond the end: OpenCV would take up to 2 GB for its content.
    """
    if data[:8].tobytes() != PNG:
        return data
    chunks = list(png_chunks(data.tobytes()))
    if chunks and chunks[-1][1].stop > len(data):
        raise ImageError("truncated")
    for kind, place in chunks:
        if kind == b"iCCP":
            return np.delete(data, place)
    return data


def lay_on_white(image: np.ndarray, alpha: np.ndarray) -> None:
    """Lay a picture, uint8 (H, W, 3), on white in its place, by its opacity, whole numbers (H, W, 1); a strip at a time, as
    numbers with a fraction take 24 bytes a pixel."""
    for top in range(0, len(image), STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        share = alpha[strip].astype(np.float32) / opaque(alpha)
        image[strip] = np.rint(image[strip] * share + 255.0 * (1.0 - share)).astype(np.uint8)


def opaque(alpha: np.ndarray) -> float:
    """What stands for no transparency in opacities of this type: 255 in uint8, 65,535 in uint16."""
    return 2.0 ** (8 * alpha.itemsize) - 1.0


def decode_alpha(data: np.ndarray, image: np.ndarray) -> np.ndarray | None:
    """The opacity of encoded bytes, uint8 or uint16 (H, W, 1), turned as `image`, its decoded colours, by the EXIF tag.

    None where everything is opaque. IMREAD_COLOR drops alpha and shows whatever colour stands under transparent pixels;
    the flag that keeps alpha leaves the picture unturned, so the turn is found by comparing colours.
    """
    if data[:2].tobytes() == b"\xff\xd8":  # JPEG has no alpha
        return None
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.ndim != 3 or raw.shape[2] != 4 or raw.dtype.kind != "u":
        return None
    alpha = raw[:, :, 3:].copy()  # without the colours
    del raw
    seen_through = alpha.min() < opaque(alpha)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if seen_through else None
    if stored is None:
        return None
    for axes in ((0, 1, 2), (1, 0, 2)):  # as it is, and mirrored at the diagonal
        for quarter_turns in range(4):
            if np.array_equal(np.rot90(stored.transpose(axes), quarter_turns), image):
                return np.rot90(alpha.transpose(axes), quarter_turns)
    return None


def find_faces(detect: Detector, image: np.ndarray) -> list[Face]:
    """The faces that a detector finds. Raises ImageError where it cannot be done, as memory is short."""
    try:
        return detect(image)
    except (cv2.error, MemoryError) as error:
        raise ImageError("cannot be searched for faces") from error


def looks_like_crop(image: np.ndarray) -> bool:
    """Whether a picture in which no face was found may be a face crop already: 16 to 256 px and nearly square."""
    low, high = sorted(image.shape[:2])
    return low >= CROP_SIZES_PX[0] and high <= CROP_SIZES_PX[1] and high <= 1.25 * low


def searched(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """A picture as faces are looked for in it, with SEARCHED_MAX_PX on its longer side at most, and how many pixels of the
    picture one of these is across and down."""
    height, width = image.shape[:2]
    scale = min(1.0, SEARCHED_MAX_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image, width / size[0], height / size[1]


def haar_faces(image: np.ndarray) -> list[Face]:
    """Faces of an RGB image, uint8 (H, W, 3), largest first, found by OpenCV's frontal Haar cascade (Viola and Jones 2001).

    Faces under 40 px of `searched` are not looked for. The cascade gives no score: it is NaN.
    """
    if not hasattr(HAAR, "cascade"):
        HAAR.cascade = haar_cascade()
    small, across, down = searched(image)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    boxes = HAAR.cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(40, 40))
    return largest_first(
        Face(round(x * across), round(y * down), round(w * across), round(h * down), math.nan) for x, y, w, h in boxes
    )


def haar_cascade() -> Any:
    """OpenCV's frontal face cascade, read by Python: OpenCV cannot open paths with non-Latin letters on Windows."""
    path = cv2.data.haarcascades + "haarcascade_frontalface_default.xml"  # type: ignore[attr-defined]
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        storage = cv2.FileStorage(file.read(), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    cascade = cv2.CascadeClassifier()
    cascade.read(storage.getFirstTopLevelNode())
    return cascade


class YuNet:
    """The face detector of Wu, Peng and Yu (2023): boxes, scores and five landmarks. Raises DetectorError.

    It looks at `searched` pictures: its faces have 10 to 300 px.
    """

    def __init__(self, model: str | os.PathLike[str]) -> None:
        if str(model) == os.environ.get("FER_DETECTOR"):
            named, advice = ", which FER_DETECTOR names,", "unset it, or give --detector haar"
        elif str(model) in (YUNET_FILE, fetched_yunet()):
            named, advice = "", "run: make detector, or give --detector haar"
        else:
            named, advice = "", "run: make detector, and leave out --detector_model"
        if not os.path.isfile(model):  # noqa: PTH113
            raise DetectorError(f"{model}{named} is not there – {advice}")
        try:
            content, nothing = np.fromfile(model, np.uint8), np.empty(0, np.uint8)
            self.network = cv2.FaceDetectorYN.create("onnx", content, nothing, (64, 64), score_threshold=YUNET_SCORE)
            self.network.detect(np.zeros((64, 64, 3), np.uint8))  # another network is loaded all the same
        except (cv2.error, OSError) as error:
            raise DetectorError(f"{model}{named} is not YuNet's ONNX file – {advice}") from error
        self.lock = threading.Lock()  # the network keeps its input size between two calls

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces of an RGB image, uint8 (H, W, 3), largest first."""
        small, across, down = searched(image)
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        if min(small.shape[:2]) < YUNET_SIDE_MIN_PX:  # below it OpenCV reads memory that nobody has written
            below, right = (max(0, YUNET_SIDE_MIN_PX - length) for length in small.shape[:2])
            small = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT)
        with self.lock:
            self.network.setInputSize((small.shape[1], small.shape[0]))
            rows = self.network.detect(small)[1]  # (n, 15): x, y, w, h, five times (x, y), score
        faces = []
        for row in [] if rows is None else rows[np.isfinite(rows).all(axis=1)].astype(float):
            x, y, w, h = row[0] * across, row[1] * down, row[2] * across, row[3] * down
            places = tuple((float(px * across), float(py * down)) for px, py in row[4:14].reshape(5, 2))
            faces.append(Face(round(x), round(y), max(1, round(w)), max(1, round(h)), round(float(row[14]), 4), places))
        return largest_first(faces)


def fetch_yunet(target: str | os.PathLike[str]) -> None:
    """Download YuNet's file from its authors' collection, and write it where its checksum is right. Raises DetectorError."""
    import hashlib
    import urllib.request

    by_hand = f"get {YUNET_ADDRESS} by hand and name it in the environment variable FER_DETECTOR"
    try:
        with urllib.request.urlopen(YUNET_ADDRESS, timeout=30) as answer:
            content = answer.read(10_000_000)
    except OSError as error:
        raise DetectorError(f"{YUNET_ADDRESS} cannot be read ({error}) – {by_hand}") from error
    if hashlib.sha256(content).hexdigest() != YUNET_SHA256:
        raise DetectorError(f"what {YUNET_ADDRESS} holds is not the file that was expected (checksum) – {by_hand}")
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)  # noqa: PTH103, PTH120
    with open(f"{target}.tmp", "wb") as file:  # noqa: PTH123
        file.write(content)
    os.replace(f"{target}.tmp", target)  # noqa: PTH105


def largest_first(faces: Iterable[Face]) -> list[Face]:
    """Faces by the area of their boxes, the largest first."""
    return sorted(faces, key=lambda face: (-face.w * face.h, face.x, face.y))


def fetched_yunet() -> str:
    """Where `make detector` puts YuNet's file: beside this one."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights", YUNET_FILE)  # noqa: PTH118, PTH120, PTH100


def find_yunet(model: str | os.PathLike[str] | None = None) -> str | None:
    """YuNet's file: the one given, else that of the environment variable FER_DETECTOR, else the one `make detector` fetched;
    None where none of these is there."""
    fetched = fetched_yunet()
    named = model or os.environ.get("FER_DETECTOR")
    return str(named) if named else fetched if os.path.isfile(fetched) else None  # noqa: PTH113


def make_detector(name: str = "auto", model: str | os.PathLike[str] | None = None) -> tuple[Detector, str]:
    """A detector, RGB image → faces, and its name: YuNet where its file is found ("auto"), else the Haar cascade; "none"
    finds nothing, for pictures that are faces already. Raises DetectorError.
    """
    if model is not None and name in ("haar", "none"):
        raise DetectorError(f"--detector_model is YuNet's file, which --detector {name} does not use")
    found = find_yunet(model)
    if name == "auto":
        name = "haar" if found is None else "yunet"
    if name == "yunet":
        return YuNet(YUNET_FILE if found is None else found), name
    return {"haar": haar_faces, "none": lambda image: []}[name], name


def crop_face(image: np.ndarray, face: Face, margin: float) -> np.ndarray:
    """The square around a face box, widened by `margin` (a fraction of the longer side) on every side.

    What lies outside the picture repeats its border pixels, so that faces at an edge keep their proportions.
    """
    side = round(max(face.w, face.h) * (1.0 + 2.0 * margin))
    side = max(side, 1)
    left = round(face.x + face.w / 2 - side / 2)
    top = round(face.y + face.h / 2 - side / 2)
    height, width = image.shape[:2]
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return image[rows[:, None], columns[None, :]]


def align_face(image: np.ndarray, landmarks: ArrayLike, template: ArrayLike) -> np.ndarray:
    """The square of a picture in which a face's five landmarks lie as near as can be to their places in the training crops.

    landmarks: five (x, y) in pixels; template: x and y of the five as shares of the crop's side, ten numbers. The square is
    turned, moved and scaled, nothing else (Umeyama 1991), and has the pixels that it covers in the picture. What lies
    outside the picture repeats its border.
    """
    source = np.asarray(template, dtype=np.float64).reshape(5, 2)
    target = np.asarray(landmarks, dtype=np.float64)
    from_middle, to_middle = source.mean(axis=0), target.mean(axis=0)
    centred = source - from_middle
    u, spread, vt = np.linalg.svd((target - to_middle).T @ centred)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    turn = u @ np.diag(sign) @ vt
    side = (spread * sign).sum() / (centred**2).sum()  # of the square, in pixels of the picture
    pixels = int(np.clip(round(side), 1, ALIGNED_MAX_PX))
    step = turn * side / pixels  # a pixel of the crop, in the picture
    corner = to_middle - side * turn @ from_middle
    middle = corner + step @ np.array([0.5, 0.5]) - 0.5  # where the middle of the crop's first pixel lies
    # The part of the picture that the square may lie on, and a border: OpenCV warps no picture of more than 32,767 px.
    corners = corner + side * np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) @ turn.T
    bounds = np.array(image.shape[1::-1])
    first = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2, 0, bounds - 1)
    last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 3, first + 1, bounds)
    return cv2.warpAffine(
        image[first[1] : last[1], first[0] : last[0]],
        np.column_stack([step, middle - first]),
        (pixels, pixels),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


@dataclass(frozen=True)
class Preprocess:
    """How a face crop becomes network input; stored in every checkpoint, so that use equals training.

    size_px: height and width; channels: 3 (RGB) or 1 (grey); mean and std: one value a channel, on the 0..1 scale;
    margin: how much `crop_face` widens a detector's box to match the crops of the training data; keep: the central share
    of the picture's sides that is used, below 1 where training crops zoomed in, so that faces keep their size; order:
    "rgb" or "bgr", that of the colours in the network input and of mean and std; landmarks: where the five landmarks of a
    face lie on average in the training crops (see `align_face`), or None where that was not measured.
    """

    size_px: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: float = 0.0
    keep: float = 1.0
    order: str = "rgb"
    landmarks: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"order must be rgb or bgr, not {self.order}")
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep must lie in (0, 1], not be {self.keep}")
        if self.channels not in (1, 3) or len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.channels} channels need as many values in mean {self.mean} and std {self.std}")
        if self.landmarks is not None and len(self.landmarks) != 10:
            raise ValueError(f"landmarks must be ten numbers, not {len(self.landmarks)}")

    def crop(self, image: np.ndarray, face: Face) -> np.ndarray:
        """A face as the network's training crops show faces: by its landmarks where both are known, else by its box."""
        if face.landmarks is not None and self.landmarks is not None:
            return align_face(image, face.landmarks, self.landmarks)
        return crop_face(image, face, self.margin)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An RGB (H, W, 3) or grey (H, W) uint8 image → float32 (channels, size_px, size_px)."""
        mean = np.asarray(self.mean, dtype=np.float32) * 255.0
        scale = 1.0 / (np.asarray(self.std, dtype=np.float32) * 255.0)
        return np.ascontiguousarray(((self.resize(image) - mean) * scale).transpose(2, 0, 1), dtype=np.float32)  # (C, H, W)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """An RGB (H, W, 3) or grey (H, W) uint8 image → uint8 (size_px, size_px, channels): all but mean and std."""
        image = centre(to_channels(image, self.channels), self.keep)
        if image.shape[:2] != (self.size_px, self.size_px):
            shrinks = max(image.shape[:2]) > self.size_px
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (self.size_px, self.size_px), interpolation=interpolation)
        image = image.reshape(self.size_px, self.size_px, self.channels)
        return image[:, :, ::-1] if self.order == "bgr" else image

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Network input, float32 (channels, H, W), as a picture again: RGB uint8 (H, W, 3)."""
        picture = array.transpose(1, 2, 0) * np.asarray(self.std) + np.asarray(self.mean)  # (H, W, C), 0..1
        picture = np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8)
        return to_channels(picture[:, :, 0], 3) if self.channels == 1 else picture[:, :, :: -1 if self.order == "bgr" else 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for checkpoints and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`, also after a detour through JSON (tuples as lists)."""
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list | tuple)}
        return cls(**(values | lists))


def centre(image: np.ndarray, keep: float) -> np.ndarray:
    """The middle of an image (H, W) or (H, W, C), of `keep` times its sides, at least one pixel."""
    height, width = image.shape[:2]
    rows, columns = max(1, round(height * keep)), max(1, round(width * keep))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An RGB (H, W, 3) or grey (H, W) uint8 image as RGB (H, W, 3) or grey (H, W)."""
    if channels == 1 and image.ndim == 3:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if channels == 3 and image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return image


def main(argv: list[str] | None = None) -> int:
    """Fetch YuNet's file; status 2 with one line where that cannot be done."""
    import sys

    from command_line import Parser, line_of

    parser = Parser("Fetch the face detector YuNet (MIT licence, 0.2 MB) and check it.")
    beside = fetched_yunet()
    parser.add_argument("out", nargs="?", default=beside, help="default: %(default)s")
    out = parser.parse_args(argv).out
    try:
        fetch_yunet(out)
    except (DetectorError, OSError) as error:
        print(f"faces.py: {line_of(error)}", file=sys.stderr)
        return 2
    used = find_yunet() == out
    print(f"{out}: YuNet" + (", which predict.py uses from now on" if used else " – use it with --detector_model"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
