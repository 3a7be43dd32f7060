"""Draw a small synthetic data set of cartoon faces in the AffectNet layout, for the demo and for tests without real photos.

Each face has a class, a valence and an arousal, and what is drawn follows all three; person, pose, light, background and
JPEG quality vary at random. No real person is shown and nothing is downloaded.

    python sample_faces.py --out runs/demo/data --count 2400 --size 64 --seed 0 --sheet runs/demo/faces.png
"""

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from command_line import Parser, line_of
from labels import LABEL_SETS

AFFECTNET = LABEL_SETS["affectnet8"]
MARKER_NAME = "SYNTHETIC.txt"
MARKER_LINE = "These faces are drawn by sample_faces.py; they show no real person."
SUPERSAMPLE = 4  # drawn so many times larger, then averaged down: OpenCV's own anti-aliasing is coarse on 64-pixel faces
SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
SHEET_COLUMNS, SHEET_SIZE_PX, SHEET_LABEL_PX = 10, 128, 120

Array = NDArray[np.float64]  # (N,)
Points = NDArray[np.float64]  # (N, 2), x to the right, y down
Colour = tuple[float, float, float]  # RGB, 0..255
Image = NDArray[np.uint8]  # RGB, (H, W, 3)
Annotations = dict[str, NDArray[Any]]  # "exp", "val", "aro", "lnd"


class Region(NamedTuple):
    """Where a class lies in the valence/arousal plane (mean and standard deviation), and its share of the data set."""

    share: float
    valence: float
    valence_sd: float
    arousal: float
    arousal_sd: float


# Centres after the circumplex (Russell 1980), roughly where AffectNet has them; the shares are less uneven than AffectNet's.
REGIONS = {
    "neutral": Region(0.18, 0.00, 0.10, 0.00, 0.10),
    "happy": Region(0.20, 0.70, 0.15, 0.15, 0.20),
    "sad": Region(0.14, -0.60, 0.16, -0.30, 0.18),
    "surprise": Region(0.12, 0.20, 0.22, 0.70, 0.15),
    "fear": Region(0.10, -0.40, 0.18, 0.75, 0.14),
    "disgust": Region(0.07, -0.70, 0.14, 0.40, 0.18),
    "angry": Region(0.13, -0.50, 0.16, 0.60, 0.18),
    "contempt": Region(0.06, -0.50, 0.16, 0.30, 0.18),
}


class Expression(NamedTuple):
    """How the features of a face are moved; 0 is the resting face, about ±1 the strongest that is drawn."""

    brow_inner: float  # inner ends of the brows, up
    brow_outer: float  # outer ends of the brows, up
    eye_open: float  # upper lids, up
    squint: float  # lower lids, up
    corner_lift: float  # both corners of the mouth, up
    smirk: float  # one corner of the mouth, up and out
    mouth_open: float  # below 0: closed
    mouth_width: float
    upper_lip: float  # middle of the upper lip, up
    teeth: float  # share of an open mouth that is filled by teeth
    nose_wrinkle: float
    furrow: float  # upright folds between the brows


# A face shows its class's row plus valence and arousal times theirs, so within a class it changes with both.
CLASS_EXPRESSIONS = {  # in the order of the fields above
    "neutral": Expression(0.00, 0.00, 0.00, 0.00, 0.00, 0.00, -0.20, 0.00, 0.00, 0.30, 0.00, 0.00),
    "happy": Expression(0.05, 0.05, -0.10, 0.60, 0.45, 0.00, 0.30, 0.35, 0.10, 0.60, 0.00, 0.00),
    "sad": Expression(0.75, -0.45, -0.30, 0.10, -0.40, 0.00, -0.20, -0.15, 0.00, 0.00, 0.00, 0.25),
    "surprise": Expression(0.60, 0.75, 0.45, -0.10, 0.00, 0.00, 0.45, -0.60, 0.00, 0.10, 0.00, 0.00),
    "fear": Expression(0.75, 0.00, 0.45, -0.10, -0.20, 0.00, 0.05, 0.30, 0.00, 0.70, 0.00, 0.35),
    "disgust": Expression(-0.45, -0.35, -0.55, 0.65, -0.25, 0.15, -0.10, -0.05, 0.90, 0.60, 1.00, 0.45),
    "angry": Expression(-0.90, 0.15, -0.05, 0.35, -0.25, 0.00, -0.05, 0.15, 0.25, 1.00, 0.35, 0.90),
    "contempt": Expression(-0.10, 0.10, -0.40, 0.20, 0.20, 1.00, -0.40, -0.05, 0.10, 0.00, 0.10, 0.05),
}
VALENCE_EFFECT = Expression(0.00, 0.05, 0.00, 0.15, 0.55, 0.00, 0.05, 0.20, 0.00, 0.00, -0.05, -0.15)
AROUSAL_EFFECT = Expression(0.15, 0.20, 0.50, -0.10, 0.00, 0.00, 0.45, 0.10, 0.00, 0.10, 0.05, 0.05)
LIGHT_SPOTS = (  # x, y, radius in face units, change of brightness
    (-0.44, -0.32, 0.32, -0.22),  # eye sockets
    (0.44, -0.32, 0.32, -0.22),
    (0.00, 0.05, 0.17, 0.12),  # nose
    (-0.52, 0.25, 0.28, 0.08),  # cheeks
    (0.52, 0.25, 0.28, 0.08),
)

# What is wrong with each bad face: from the bytes and annotations of a good one to those that are written.
BAD_FACES: dict[str, Callable[[bytes, Annotations], tuple[bytes, Annotations]]] = {
    "bad_empty": lambda image, annotations: (b"", annotations),
    "bad_truncated": lambda image, annotations: (image[: len(image) // 2], annotations),
    "bad_text": lambda image, annotations: (b"This is not a picture.\n", annotations),
    "bad_unlabelled": lambda image, annotations: (image, {key: annotations[key] for key in ("val", "aro", "lnd")}),
    "bad_class": lambda image, annotations: (image, annotations | {"exp": np.array("9")}),
    "bad_pickle": lambda image, annotations: (image, annotations | {"exp": np.array(["happy", None], dtype=object)}),
}


class Hair(NamedTuple):
    """A hair style in face units (see `Person`)."""

    volume: float  # how far it stands off the skull
    hairline_y: float  # above the middle of the forehead
    parting: float  # how much the hairline rises towards one side
    length_y: float  # how far down it falls behind the face


HAIR_STYLES = (
    Hair(0.00, -1.30, 0.00, -0.80),  # bald
    Hair(0.06, -0.98, 0.05, -0.20),  # cropped
    Hair(0.13, -0.92, 0.22, -0.05),  # parted
    Hair(0.15, -0.80, 0.02, 0.25),  # fringe
    Hair(0.15, -0.95, 0.25, 0.75),  # shoulder-long, parted
    Hair(0.17, -0.82, 0.05, 1.20),  # long, fringe
    Hair(0.24, -0.98, 0.00, 0.20),  # full
)
HAIR_COLOURS: tuple[Colour, ...] = (  # the last ones only on light skin
    (28, 22, 20), (58, 38, 26), (98, 62, 36), (165, 160, 158), (140, 60, 30), (150, 104, 52), (206, 170, 104)
)  # fmt: skip
SKIN_COLOURS: tuple[Colour, ...] = (
    (240, 208, 184), (232, 192, 162), (224, 178, 142), (206, 156, 116), (180, 128, 90), (150, 102, 70), (118, 80, 56)
)  # fmt: skip
IRIS_COLOURS: tuple[Colour, ...] = ((62, 40, 24), (90, 60, 34), (70, 110, 150), (80, 120, 80), (60, 70, 80))
DARK: Colour = (36, 24, 24)
EYE_WHITE: Colour = (246, 244, 240)
MOUTH_INSIDE: Colour = (84, 22, 28)
TEETH_COLOUR: Colour = (246, 242, 232)
TONGUE: Colour = (186, 84, 88)

EYE_Y, NOSE_Y, MOUTH_Y = -0.22, 0.26, 0.64
JAW_Y, CHIN_Y, CROWN_Y = -0.20, 1.16, -1.20
EYE_HALF_WIDTH, BROW_HALF_WIDTH, MOUTH_HALF_WIDTH = 0.23, 0.27, 0.36


class Person:
    """A random person: everything about a face that is not its expression, and pure nuisance for a network.

    Lengths are in face units: 1 is half the width of an average face, the origin lies between eyes and nose, y points down.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        complexion = int(rng.integers(len(SKIN_COLOURS)))
        hair_colours = HAIR_COLOURS[: len(HAIR_COLOURS) - complexion // 2]
        self.skin = shade(SKIN_COLOURS[complexion], rng.uniform(0.94, 1.06))
        self.hair_colour = shade(hair_colours[rng.integers(len(hair_colours))], rng.uniform(0.85, 1.15))
        self.hair = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
        self.iris = IRIS_COLOURS[rng.integers(len(IRIS_COLOURS))]
        self.shirt = (rng.uniform(30, 220), rng.uniform(30, 220), rng.uniform(30, 220))
        self.face_width = rng.uniform(0.90, 1.04)
        self.face_length = rng.uniform(0.95, 1.05)
        self.jaw_squareness = rng.uniform(0.72, 1.0)  # exponent of the superellipse: 1 is round, below 1 square
        self.eye_distance = rng.uniform(0.40, 0.47)
        self.eye_size = rng.uniform(0.88, 1.12)
        self.brow_thickness = rng.uniform(0.05, 0.10)
        self.brow_height = rng.uniform(0.25, 0.32)
        self.nose_width = rng.uniform(0.12, 0.19)
        self.lip_thickness = rng.uniform(0.04, 0.085)
        self.lip_redness = rng.uniform(0.2, 0.75)
        self.beard = rng.uniform(0.3, 0.95) if rng.random() < 0.15 else 0.0  # 0 none .. 1 full
        self.glasses = rng.random() < 0.15
        self.side = 1 if rng.random() < 0.5 else -1  # of a one-sided smile and of the parting: 1 is right in the picture


class Pose:
    """A random pose: where the head stands, in shares of the picture's side, and how it is turned, in radians."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.unit = rng.uniform(0.295, 0.34)  # length of one face unit; small enough for the head to stay in the picture
        self.x = rng.uniform(0.47, 0.53)
        self.y = rng.uniform(0.51, 0.54)
        self.roll = math.radians(np.clip(rng.normal(0, 5), -12, 12))
        self.yaw = math.radians(np.clip(rng.normal(0, 8), -18, 18))
        self.pitch = math.radians(np.clip(rng.normal(0, 4), -8, 8))


def draw_expression(rng: np.random.Generator, label: str, valence: float, arousal: float) -> Expression:
    """How one person shows an expression: more or less of the class's row, and never quite as in the table."""
    expressiveness = rng.uniform(0.35, 1.05)
    shown = expressiveness * np.array(CLASS_EXPRESSIONS[label])
    shown += valence * np.array(VALENCE_EFFECT) + arousal * np.array(AROUSAL_EFFECT)
    return Expression(*(shown + rng.normal(0, 0.12, shown.shape)).tolist())


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor below 1) or lighter colour."""
    r, g, b = (min(255.0, channel * factor) for channel in colour)
    return r, g, b


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first; shares outside 0..1 are clipped."""
    share = min(1.0, max(0.0, share))
    r, g, b = ((1 - share) * a + share * c for a, c in zip(first, second, strict=True))
    return r, g, b


def curve(x: Array, y: Array) -> Points:
    """Points (N, 2) of a curve from its coordinates (N,)."""
    return np.stack([x, y], axis=1)


class FaceShape:
    """The geometry of one face in face units: each feature a curve that gives both its shape and its landmarks."""

    def __init__(self, person: Person, expression: Expression) -> None:
        self.person = person
        self.expression = expression
        gap = 0.40 * max(0.0, expression.mouth_open)
        raised = 0.10 * max(0.0, expression.upper_lip)
        self.mouth_gap = gap + raised  # at its widest
        self.mouth_raised = 0.2 * gap + raised  # the part of the gap above the line between the corners
        self.chin_y = CHIN_Y * person.face_length + 0.35 * gap  # an open mouth pulls the chin down

    def jaw(self, count: int) -> Points:
        """From ear to ear (left to right in the picture) round the chin, `count` points."""
        angle = np.linspace(0, np.pi, count)
        exponent = self.person.jaw_squareness
        x = -np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** exponent
        return curve(x * self.person.face_width, JAW_Y + (self.chin_y - JAW_Y) * np.sin(angle) ** exponent)

    def skull(self, count: int, volume: float = 0.0) -> Points:
        """From the right ear over the crown to the left ear, `volume` off the skull."""
        angle = np.linspace(0, np.pi, count)
        height = (JAW_Y - CROWN_Y) + volume
        return curve((self.person.face_width + volume) * np.cos(angle), JAW_Y - height * np.sin(angle))

    def brow(self, side: int, count: int) -> Points:
        """From the outer to the inner end; side -1 is the left of the picture, 1 the right."""
        person, expression = self.person, self.expression
        s = np.linspace(-1, 1, count)
        raised = 0.19 * (expression.brow_outer * (1 - s) / 2 + expression.brow_inner * (1 + s) / 2)
        x = person.eye_distance - s * BROW_HALF_WIDTH - 0.04 * max(0.0, expression.furrow) * (1 + s) / 2
        return curve(side * x, EYE_Y - person.brow_height - 0.06 * (1 - s**2) - raised)

    def lids(self, s: Array) -> tuple[Array, Array]:
        """Heights of upper and lower lid at s (N,), -1 the outer and 1 the inner corner, from the middle of the eye."""
        expression, size = self.expression, self.person.eye_size
        opening = max(0.02, 0.13 * size * (1 + 0.65 * expression.eye_open))
        slant = 0.35 * (expression.brow_inner - expression.brow_outer)  # the lids follow the brows
        arch = np.clip(1 - s**2, 0, None) ** 0.7
        upper = -opening * arch * np.clip(1 + slant * s, 0.2, None)
        lower = 0.08 * size * (1 - 1.1 * expression.squint) * np.clip(1 - s**2, 0, None)
        return upper, np.maximum(lower, upper + 0.02 * arch)

    def eye_points(self, side: int, s: Array, y: Array) -> Points:
        """From eye coordinates (s as in `lids`, y relative to the middle of the eye) to face units."""
        return curve(side * (self.person.eye_distance - s * EYE_HALF_WIDTH * self.person.eye_size), EYE_Y + y)

    def mouth_line(self, t: Array) -> Array:
        """Height of the line along which the lips meet at t (N,), -1 the left corner and 1 the right."""
        expression = self.expression
        lift = 0.20 * expression.corner_lift * (t**2 - 0.35)
        smirk = 0.20 * expression.smirk * np.clip(self.person.side * t, 0, None) ** 1.5
        return MOUTH_Y - lift - smirk

    def mouth_x(self, t: Array) -> Array:
        """Horizontal positions at t (N,), as in `mouth_line`."""
        half_width = MOUTH_HALF_WIDTH * (1 + 0.38 * self.expression.mouth_width)
        return half_width * t + 0.05 * self.expression.smirk * self.person.side * np.abs(t)

    def lips(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Heights at t (N,), top down: outer and inner edge of the upper lip, inner and outer edge of the lower lip."""
        line, arch = self.mouth_line(t), np.clip(1 - t**2, 0, None)
        round_arch = arch**0.6
        inner_upper = line - self.mouth_raised * round_arch
        inner_lower = line + (self.mouth_gap - self.mouth_raised) * round_arch
        thickness = self.person.lip_thickness
        bow = 0.2 * np.exp(-((t / 0.15) ** 2))  # the dip in the middle of the upper lip
        outer_upper = inner_upper - thickness * (arch**0.8 - bow)
        return outer_upper, inner_upper, inner_lower, inner_lower + 1.3 * thickness * arch**0.8

    def nose_base(self, count: int) -> Points:
        """From wing to wing under the tip."""
        t = np.linspace(-1, 1, count)
        raised = 0.05 * max(0.0, self.expression.nose_wrinkle)
        width = self.person.nose_width * (1 + 0.25 * max(0.0, self.expression.nose_wrinkle))
        return curve(width * t, NOSE_Y + 0.05 * (1 - t**2) - raised)

    def landmarks(self) -> list[tuple[Points, float]]:
        """The 68 landmarks in the iBUG order, in groups of (points, depth); depth as in `project`."""
        t_outer, t_inner = np.linspace(-1, 1, 7), np.linspace(-0.85, 0.85, 5)
        x_outer, x_inner = self.mouth_x(t_outer), self.mouth_x(t_inner)
        outer_upper, _, _, outer_lower = self.lips(t_outer)
        _, inner_upper, inner_lower, _ = self.lips(t_inner)
        bridge = curve(np.zeros(4), np.linspace(EYE_Y + 0.05, NOSE_Y - 0.06, 4))
        eyes = []
        s_left = np.array([-1, -0.35, 0.35, 1, 0.35, -0.35])  # over the upper lid to the inner corner, and back below
        for side, s in ((-1, s_left), (1, -s_left)):
            upper, lower = self.lids(s)
            eyes.append(self.eye_points(side, s, np.where(np.arange(6) < 4, upper, lower)))
        lips = (
            curve(x_outer, outer_upper),
            curve(x_outer, outer_lower)[5:0:-1],
            curve(x_inner, inner_upper),
            curve(x_inner, inner_lower)[3:0:-1],
        )
        brows = np.concatenate([self.brow(-1, 5), self.brow(1, 5)[::-1]])
        surface = np.concatenate([*eyes, *lips])
        return [(self.jaw(17), 0), (brows, 1), (bridge[:2], 1.1), (bridge[2:], 1.4), (self.nose_base(5), 1.2), (surface, 1)]


def project(points: Points, depth: float, pose: Pose, size_px: int) -> Points:
    """Points (N, 2) from face units to pixels.

    The head is a half ellipsoid seen from the front: `depth` 0 puts points on its outline, 1 on its surface, more in front
    of it (the nose); turning the head moves near points further than far ones.
    """
    x, y = points[:, 0], points[:, 1]
    z = depth * np.sqrt(np.clip(1 - x**2 - (y / 1.35) ** 2, 0, None))
    turned_x = x * math.cos(pose.yaw) + z * math.sin(pose.yaw)
    turned_y = y + z * math.sin(pose.pitch)
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    rolled = np.stack([cos * turned_x - sin * turned_y, sin * turned_x + cos * turned_y], axis=1)
    return size_px * (pose.unit * rolled + (pose.x, pose.y)) - 0.5  # -0.5: whole coordinates are the middles of pixels


class Canvas:
    """A picture, SUPERSAMPLE times too large, on which shapes given in face units are drawn."""

    def __init__(self, background: Image, pose: Pose) -> None:
        self.pixels = background  # (H, W, 3) RGB
        self.pose = pose

    def _fixed_point(self, points: Points, depth: float) -> NDArray[np.int32]:
        pixels = project(points, depth, self.pose, self.pixels.shape[0])
        return np.round(pixels * (1 << SHIFT)).astype(np.int32)

    def fill(self, points: Points, colour: Colour, *, depth: float = 1.0) -> None:
        """Fill a polygon (N, 2)."""
        cv2.fillPoly(self.pixels, [self._fixed_point(points, depth)], colour, cv2.LINE_AA, SHIFT)

    def stroke(self, points: Points, colour: Colour, width: float, *, depth: float = 1.0, closed: bool = False) -> None:
        """Draw an open or closed line through points (N, 2); the width is in face units."""
        thickness = max(1, round(width * self.pose.unit * self.pixels.shape[0]))
        cv2.polylines(self.pixels, [self._fixed_point(points, depth)], closed, colour, thickness, cv2.LINE_AA, SHIFT)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, count: int = 32) -> Points:
    """Points (count, 2) of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return curve(x + radius_x * np.cos(angle), y + radius_y * np.sin(angle))


def paint_head(canvas: Canvas, face: FaceShape) -> None:
    """Shoulders, neck, the hair behind the head, ears, skull and beard."""
    person = face.person
    hair, skin = person.hair, person.skin
    canvas.fill(ellipse(0, 2.35, 1.9, 0.95), person.shirt, depth=0)
    if hair.volume > 0:
        width = person.face_width + hair.volume
        ends = np.array([[-width, hair.length_y], [width, hair.length_y]])
        canvas.fill(np.concatenate([face.skull(32, hair.volume), ends]), shade(person.hair_colour, 0.8), depth=0)
    canvas.fill(np.array([[-0.45, 0.7], [0.45, 0.7], [0.52, 1.6], [-0.52, 1.6]]), shade(skin, 0.78), depth=0)
    for side in (-1, 1):
        canvas.fill(ellipse(side * person.face_width, 0.0, 0.13, 0.22), shade(skin, 0.9), depth=0)
    outline = np.concatenate([face.jaw(33), face.skull(33)])
    canvas.fill(outline, skin, depth=0)
    if person.beard > 0:
        t = np.linspace(1, -1, 24)
        edge = curve(0.96 * person.face_width * t, 0.14 + 0.36 * (1 - np.abs(t) ** 3))
        colour = blend(skin, shade(person.hair_colour, 0.85), person.beard)
        canvas.fill(np.concatenate([face.jaw(33)[4:-4], edge]), colour, depth=0)
    canvas.stroke(outline, shade(skin, 0.68), 0.03, depth=0, closed=True)


def paint_fringe(canvas: Canvas, face: FaceShape) -> None:
    """The hair over the forehead."""
    person, hair = face.person, face.person.hair
    if hair.volume > 0:
        t = np.linspace(-1, 1, 24)
        hairline = hair.hairline_y - hair.parting * t * person.side
        front = curve(person.face_width * t, hairline + (JAW_Y - 0.05 - hairline) * np.abs(t) ** 4)
        canvas.fill(np.concatenate([face.skull(32, hair.volume), front]), person.hair_colour, depth=0)


def paint_folds(canvas: Canvas, face: FaceShape) -> None:
    """The folds of the skin: between the brows, across the nose, over raised brows, and from nose to mouth."""
    person, expression = face.person, face.expression
    skin = person.skin
    brow_y = EYE_Y - person.brow_height
    t = np.linspace(-1, 1, 9)
    raised = (expression.brow_inner + expression.brow_outer) / 2
    cheeks = max(expression.nose_wrinkle, expression.corner_lift, expression.upper_lip)
    ends = np.array([-1.0, 1.0])
    corners = curve(face.mouth_x(ends), face.mouth_line(ends))

    def fold(points: Points, strength: float, width: float) -> None:
        if strength > 0.1:  # anything weaker could not be told from the skin
            canvas.stroke(points, blend(skin, shade(skin, 0.4), strength), width)

    for side, (corner_x, corner_y) in zip((-1, 1), corners, strict=True):
        fold(curve(side * (0.07 + 0.02 * t), brow_y + 0.02 + 0.10 * t), expression.furrow, 0.035)
        down = (t + 1) / 2
        wing_x = side * (person.nose_width + 0.03)
        x = wing_x + (corner_x + side * 0.07 - wing_x) * down + side * 0.03 * np.sin(np.pi * down)
        fold(curve(x, NOSE_Y - 0.04 + (corner_y - 0.02 - NOSE_Y + 0.04) * down), cheeks, 0.03)
    for row in range(3):
        fold(curve(0.13 * t, EYE_Y - 0.04 + 0.09 * row + 0.03 * t**2), expression.nose_wrinkle, 0.03)
    for row in range(2):
        fold(curve(0.38 * t, brow_y - 0.27 - 0.10 * row + 0.03 * t**2), raised, 0.025)


def paint_nose(canvas: Canvas, face: FaceShape) -> None:
    """One edge of the bridge, the wings and the nostrils."""
    skin, base = face.person.skin, face.nose_base(13)
    side = face.person.side
    bridge = curve(side * np.array([0.05, 0.06, 0.09]), np.array([EYE_Y + 0.12, 0.02, NOSE_Y - 0.07]))
    canvas.stroke(bridge, shade(skin, 0.82), 0.04, depth=1.2)
    rise = np.array([0, -0.07])
    wings = np.concatenate([base[:1] + rise, base, base[-1:] + rise])
    canvas.stroke(wings, shade(skin, 0.6), 0.04, depth=1.2)
    for x, y in (base[4], base[8]):
        canvas.fill(ellipse(x, y - 0.025, 0.035, 0.022, 12), shade(skin, 0.35), depth=1.2)


def paint_mouth(canvas: Canvas, face: FaceShape) -> None:
    """The lips, and what an open mouth shows."""
    person, expression = face.person, face.expression
    t = np.linspace(-1, 1, 33)
    x = face.mouth_x(t)
    outer_upper, inner_upper, inner_lower, outer_lower = face.lips(t)

    def between(upper: Array, lower: Array, colour: Colour) -> None:
        canvas.fill(np.concatenate([curve(x, upper), curve(x, lower)[::-1]]), colour)

    lips = blend(shade(person.skin, 0.72), (196, 62, 70), person.lip_redness)
    between(outer_upper, inner_upper, shade(lips, 0.88))
    between(inner_lower, outer_lower, lips)
    if face.mouth_gap > 0.02:
        between(inner_upper, inner_lower, MOUTH_INSIDE)
        between(np.maximum(inner_upper, inner_lower - 0.3 * face.mouth_gap), inner_lower, TONGUE)
        teeth = min(1.0, max(0.0, expression.teeth))
        between(inner_upper, inner_upper + teeth * (inner_lower - inner_upper), TEETH_COLOUR)
    canvas.stroke(curve(x, inner_upper), shade(lips, 0.42), 0.03)
    if face.mouth_gap > 0.02:
        canvas.stroke(curve(x, inner_lower), shade(lips, 0.42), 0.025)


def paint_eyes(canvas: Canvas, face: FaceShape) -> None:
    """Eye whites, irises cut off by the lids, lid lines, brows and glasses."""
    person = face.person
    s = np.linspace(-1, 1, 17)
    upper, lower = face.lids(s)
    for side in (-1, 1):
        lid_line = face.eye_points(side, s, upper)
        canvas.fill(np.concatenate([lid_line, face.eye_points(side, s, lower)[::-1]]), EYE_WHITE)
        for radius, colour in ((0.115, person.iris), (0.055, DARK)):
            disc = ellipse(0, -0.025, radius / EYE_HALF_WIDTH, radius * person.eye_size)
            disc_upper, disc_lower = face.lids(disc[:, 0])
            canvas.fill(face.eye_points(side, disc[:, 0], np.clip(disc[:, 1], disc_upper, disc_lower)), colour)
        canvas.stroke(face.eye_points(side, s, lower), shade(person.skin, 0.55), 0.02)
        canvas.stroke(lid_line, DARK, 0.05)
        brow = face.brow(side, 12)
        half_thickness = person.brow_thickness * curve(np.zeros(12), np.linspace(0.35, 0.65, 12))
        outline = np.concatenate([brow - half_thickness, (brow + half_thickness)[::-1]])
        canvas.fill(outline, blend(person.hair_colour, DARK, 0.5))
        if person.glasses:
            canvas.stroke(ellipse(side * person.eye_distance, EYE_Y + 0.02, 0.33, 0.28), DARK, 0.035, depth=1.1, closed=True)
    if person.glasses:
        inner = person.eye_distance - 0.33
        canvas.stroke(np.array([[-inner, EYE_Y], [inner, EYE_Y]]), DARK, 0.035, depth=1.1)


def draw_background(rng: np.random.Generator, size_px: int) -> Image:
    """A blurred room: a few random patches (H, W, 3) around one colour."""
    patches = rng.uniform(40, 200) + rng.normal(0, 22, 3) + rng.normal(0, 20, (4, 4, 3))
    smooth = cv2.resize(patches.astype(np.float32), (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def light_map(rng: np.random.Generator, pose: Pose, size_px: int) -> NDArray[np.float64]:
    """Factors (H, W, 1) by which light changes the picture: it falls from one side, and less of it into the eye sockets."""
    x = (np.arange(size_px) + 0.5)[None, :] / size_px - 0.5
    y = x.T
    direction, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.9)
    light = rng.uniform(0.68, 1.06) * (1 + strength * (math.cos(direction) * x + math.sin(direction) * y))
    for spot_x, spot_y, radius, change in LIGHT_SPOTS:
        centre_x, centre_y = project(np.array([[spot_x, spot_y]]), 1.0, pose, size_px)[0] / size_px - 0.5
        scale = 1 / (radius * pose.unit)
        light += change * np.exp(-(((y - centre_y) * scale) ** 2)) * np.exp(-(((x - centre_x) * scale) ** 2))
    return light[:, :, None]


def draw_face(
    rng: np.random.Generator, label: str, valence: float, arousal: float, size_px: int
) -> tuple[Image, NDArray[np.float32]]:
    """Draw one face: RGB picture (size_px, size_px, 3) and its 68 landmarks (68, 2), (x, y) in pixels in the iBUG order.

    label: a class of `affectnet8`, else KeyError; valence, arousal: -1..1. Person, pose and light come from `rng`: two
    generators in the same state draw the same person in the same light, whatever the other arguments are.
    """
    label = AFFECTNET.canonical(label)
    person, pose = Person(rng), Pose(rng)
    face = FaceShape(person, draw_expression(rng, label, valence, arousal))
    canvas = Canvas(draw_background(rng, size_px * SUPERSAMPLE), pose)
    for paint in (paint_head, paint_folds, paint_fringe, paint_nose, paint_mouth, paint_eyes):
        paint(canvas, face)
    small = cv2.resize(canvas.pixels, (size_px, size_px), interpolation=cv2.INTER_AREA).astype(np.float32)
    lit = small * light_map(rng, pose, size_px)
    grain = rng.uniform(1, 8) * rng.standard_normal(lit.shape, dtype=np.float32)
    image = np.clip(lit + grain, 0, 255).astype(np.uint8)
    landmarks = np.concatenate([project(points, depth, pose, size_px) for points, depth in face.landmarks()])
    return image, landmarks.astype(np.float32)


def class_counts(count: int) -> dict[str, int]:
    """How many of `count` faces each class gets: its share, rounded so that the sum is kept (largest remainders)."""
    exact = {label: count * REGIONS[label].share for label in AFFECTNET.names}
    counts = {label: math.floor(share + 1e-9) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in by_remainder[: count - sum(counts.values())]:
        counts[label] += 1
    return counts


def draw_labels(count: int, seed: int) -> list[str]:
    """The class of every face, in random order."""
    ordered = [label for label, number in class_counts(count).items() for _ in range(number)]
    return [ordered[i] for i in np.random.default_rng(seed).permutation(count)]


def face_rng(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one face: its own, so that it does not depend on those drawn before it."""
    return np.random.default_rng([seed, index])


def draw_affect(rng: np.random.Generator, label: str) -> tuple[float, float]:
    """Valence and arousal of one face of a class, each in [-1, 1], to four decimals."""
    region = REGIONS[label]
    valence, arousal = rng.normal((region.valence, region.arousal), (region.valence_sd, region.arousal_sd))
    return round(float(np.clip(valence, -1, 1)), 4), round(float(np.clip(arousal, -1, 1)), 4)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """An RGB picture (H, W, 3) as the bytes of a JPEG file."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def annotate(label: str, valence: float, arousal: float, landmarks: NDArray[np.float32]) -> Annotations:
    """The four annotations of a face as AffectNet's release stores them: scalars as 0-d text, landmarks as 136 floats."""
    return {
        "exp": np.array(str(AFFECTNET.index(label))),
        "val": np.array(str(valence)),
        "aro": np.array(str(arousal)),
        "lnd": landmarks.reshape(-1).astype(np.float64),
    }


def prepare_folder(out: Path, marker: str) -> None:
    """Make OUT/images and OUT/annotations, empty, and the marker file.

    What an earlier run drew is removed. Raises FileExistsError for a file, and for a folder that holds anything else.
    """
    marker_path = out / MARKER_NAME
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file – choose a folder: --out DIR")
    drawn_here = marker_path.is_file() and marker_path.read_bytes().startswith(MARKER_LINE.encode())
    if out.is_dir() and any(out.iterdir()) and not drawn_here:
        raise FileExistsError(f"{out} is not empty and was not made by sample_faces.py – choose another folder: --out DIR")
    out.mkdir(parents=True, exist_ok=True)
    marker_path.write_text(marker, encoding="utf-8")  # first, so that an interrupted run can be repeated
    for folder in (out / "images", out / "annotations"):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()


def write_dataset(out: Path, *, count: int, size_px: int, seed: int, bad: int) -> dict[str, int]:
    """Draw `count` faces and `bad` (0 to 6) unusable ones into `out` in the AffectNet layout.

    The same arguments give the same bytes. Returns the number of faces per class and, as "bad", of unusable ones. Raises
    FileExistsError where `out` is in use.
    """
    prepare_folder(out, f"{MARKER_LINE}\nseed {seed}, {count} faces of {size_px} px, {bad} bad ones on purpose\n")
    labels = draw_labels(count, seed)
    for index in tqdm(range(count + bad), desc="drawing faces", unit="face", disable=None):
        rng = face_rng(seed, index)
        label = labels[index] if index < count else "neutral"
        valence, arousal = draw_affect(rng, label)
        image, landmarks = draw_face(rng, label, valence, arousal, size_px)
        name, encoded = str(index), encode_jpeg(image, int(rng.integers(55, 96)))
        annotations = annotate(label, valence, arousal, landmarks)
        if index >= count:
            name, spoil = list(BAD_FACES.items())[index - count]
            encoded, annotations = spoil(encoded, annotations)
        (out / "images" / f"{name}.jpg").write_bytes(encoded)
        for key, values in annotations.items():
            # Only an array of objects is pickled, and one of the bad files is one on purpose.
            np.save(out / "annotations" / f"{name}_{key}.npy", values, allow_pickle=values.dtype == object)
    return {label: labels.count(label) for label in AFFECTNET.names} | {"bad": bad}


def draw_sheet(*, count: int, seed: int) -> Image:
    """A contact sheet: the first ten faces of each class of a data set, one class a row, drawn larger."""
    labels = draw_labels(count, seed)
    sheet = np.full((len(AFFECTNET) * SHEET_SIZE_PX, SHEET_LABEL_PX + SHEET_COLUMNS * SHEET_SIZE_PX, 3), 255, np.uint8)
    for row, label in enumerate(AFFECTNET.names):
        top = row * SHEET_SIZE_PX
        place = (10, top + SHEET_SIZE_PX // 2)
        cv2.putText(sheet, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        indices = [index for index, name in enumerate(labels) if name == label]
        for column, index in enumerate(indices[:SHEET_COLUMNS]):
            rng = face_rng(seed, index)
            image, _ = draw_face(rng, label, *draw_affect(rng, label), SHEET_SIZE_PX)
            left = SHEET_LABEL_PX + column * SHEET_SIZE_PX
            sheet[top : top + SHEET_SIZE_PX, left : left + SHEET_SIZE_PX] = image
    return sheet


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number in low..high."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Draw a small synthetic data set of cartoon faces in the AffectNet layout.",
        epilog="example: python sample_faces.py --out runs/demo/data --count 2400 --sheet runs/demo/faces.png",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo/data"), metavar="DIR", help="folder to write (default: %(default)s)")
    add("--count", type=whole_number(1, 1_000_000), default=2400, metavar="N", help="good faces (default: %(default)s)")
    add("--size", type=whole_number(16, 1024), default=64, metavar="PX", help="height and width (default: %(default)s)")
    add(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="same seed, same bytes (default: %(default)s)",
    )
    add(
        "--bad",
        type=whole_number(0, len(BAD_FACES)),
        default=6,
        metavar="N",
        help="faces unusable on purpose (default: %(default)s)",
    )
    add("--sheet", type=Path, metavar="FILE.png", help="also write a contact sheet, one class a row")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.sheet and (args.sheet.suffix.lower() != ".png" or args.sheet.is_dir()):
        parser.error(f"--sheet {args.sheet}: give a file that ends in .png")
    try:
        counts = write_dataset(args.out, count=args.count, size_px=args.size, seed=args.seed, bad=args.bad)
        if args.sheet:
            args.sheet.parent.mkdir(parents=True, exist_ok=True)
            sheet = cv2.cvtColor(draw_sheet(count=args.count, seed=args.seed), cv2.COLOR_RGB2BGR)
            temporary = args.sheet.with_name(f"{args.sheet.name}.tmp")
            temporary.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
            temporary.replace(args.sheet)
    except OSError as error:
        print(f"sample_faces.py: {line_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sample_faces.py: interrupted; call it again for all faces", file=sys.stderr)
        return 130
    bad = counts.pop("bad")
    listed = ", ".join(f"{number} {label}" for label, number in counts.items())
    print(f"{args.out}: {args.count} drawn faces of no real person ({listed}), and {bad} bad ones on purpose (bad_*)")
    if args.sheet:
        print(f"{args.sheet}: ten faces of each class")
    return 0


if __name__ == "__main__":
    sys.exit(main())
