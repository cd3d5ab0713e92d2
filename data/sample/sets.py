"""The label sets of the drawn leaves: what each label looks like, and how many photos have it. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

Colour = tuple[tuple[int, int, int], tuple[int, int, int]]  # RGB, 0 to 255: drawn from this range
Combination = tuple[str, ...]  # the labels of one photo


@dataclass(frozen=True)
class Lesion:
    """One kind of lesion.

    Args:
        painter: a key of `data.sample.leaves.PAINTERS`.
        colours: what the painter paints with, the outer part first.
        radius: smallest and largest half side of its box, in pixels.
        count: fewest and most on one leaf.
        stretch: ratio of its length to its width.
    """

    painter: str
    colours: tuple[Colour, ...]
    radius: tuple[float, float]
    count: tuple[int, int]
    stretch: float = 1


@dataclass(frozen=True)
class SampleSet:
    """The labels of a sample.

    Args:
        lesions: label -> its kinds of lesions.
        shares: combination -> how many photos have it, relative to the other combinations.
        counts: split -> default number of photos.
        rare: label without a share -> split -> how many photos have it, for any counts.
    """

    lesions: Mapping[str, tuple[Lesion, ...]]
    shares: Mapping[Combination, float]
    counts: Mapping[str, int]
    rare: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


BLACK: Colour = ((22, 18, 16), (42, 36, 32))
BROWN: Colour = ((100, 52, 22), (130, 76, 42))
ORANGE: Colour = ((215, 105, 15), (245, 140, 45))
PURPLE: Colour = ((104, 26, 88), (138, 54, 124))
WHITE: Colour = ((205, 208, 200), (232, 234, 228))
YELLOW: Colour = ((214, 194, 50), (238, 220, 88))
COLOURS = {"black": BLACK, "brown": BROWN, "orange": ORANGE, "purple": PURPLE, "white": WHITE, "yellow": YELLOW}
_DARK_RIM: Colour = ((44, 26, 16), (66, 42, 28))
_PALE_RIM: Colour = ((176, 160, 118), (206, 190, 150))

SCAB = Lesion("blotch", (((44, 44, 14), (74, 70, 34)),), (7.5, 12), (6, 10))
FROG = Lesion("eye", (((62, 28, 18), (88, 44, 32)), ((145, 105, 68), (185, 142, 100))), (6, 9.5), (6, 11))
RUST = Lesion("halo", (((190, 175, 40), (225, 205, 80)), ORANGE), (5.5, 9), (7, 13))
MILDEW = Lesion("dust", (WHITE,), (13, 19), (4, 7))

# The course's labels; 8 % of the leaves have two labels, one of them frog_eye_leaf_spot, as on real leaves.
APPLE = SampleSet(
    lesions={
        "scab": (SCAB,),
        "frog_eye_leaf_spot": (FROG,),
        "rust": (RUST,),
        "powdery_mildew": (MILDEW,),
        "healthy": (),
        "complex": (replace(MILDEW, count=(2, 2)), *(replace(lesion, count=(4, 5)) for lesion in (SCAB, FROG, RUST))),
    },
    shares={
        ("scab",): 0.20,
        ("frog_eye_leaf_spot",): 0.17,
        ("rust",): 0.16,
        ("powdery_mildew",): 0.14,
        ("healthy",): 0.14,
        ("complex",): 0.11,
        ("scab", "frog_eye_leaf_spot"): 0.05,
        ("rust", "frog_eye_leaf_spot"): 0.03,
    },
    counts={"train": 1200, "val": 160, "test": 240},
)

# (radius, count, stretch) of the lesions below. A leaf has room for two labels (see MAX_BOX_SHARE).
_LARGE = ((11, 14), (3, 4), 1)
_SMALL = ((4.5, 6), (12, 16), 1)
_STREAKS = ((10, 13), (4, 5), 3.5)
_SPECKS = ((6, 7.5), (9, 12), 2.5)


def _lesions(painter: str, colour: Colour, form: tuple) -> tuple[Lesion]:
    """One kind of lesion; a painter of two colours gets a second one that contrasts with `colour`."""
    rim, halo = _PALE_RIM if colour is BLACK else _DARK_RIM, WHITE if colour is YELLOW else YELLOW
    return (Lesion(painter, {"eye": (rim, colour), "halo": (halo, colour)}.get(painter, (colour,)), *form),)


_THREE = {
    "mould": _lesions("dust", WHITE, _LARGE),
    "healthy": (),
    "black_spot": _lesions("halo", BLACK, _SMALL),
}
_TWELVE = {  # in an order that no way of sorting gives
    "Zonate": _lesions("ring", BROWN, _LARGE),
    "healthy": (),
    "10 spots": _lesions("eye", ORANGE, _SMALL),
    "Black rot (early)": _lesions("blotch", BLACK, _SMALL),
    "aphid": _lesions("dust", WHITE, _SMALL),
    "Äpfel mosaic": _lesions("blotch", YELLOW, _LARGE),
    "2 spots": _lesions("eye", YELLOW, _LARGE),
    "rust": _lesions("halo", ORANGE, _SMALL),
    "Black rot (late)": _lesions("blotch", BLACK, _LARGE),
    "été brûlé": _lesions("blotch", BROWN, _STREAKS),
    "Mehltau [weiß]": _lesions("dust", WHITE, _LARGE),
    "virus 50 %": _lesions("blotch", PURPLE, _SPECKS),
}
_ILL = [label for label in _TWELVE if label != "healthy"]
_MANY = {  # named as the class folders of public data sets are; the crop decides the form
    f"{crop}___{colour}_{painter}": _lesions(painter, COLOURS[colour], form)
    for (crop, form), painter, colour in product(
        {"Coffee": _LARGE, "Grape": _SMALL, "Maize": _STREAKS, "Rice": _SPECKS}.items(),
        ("blotch", "dust", "eye", "halo", "ring"),
        COLOURS,
    )
}
_SKEWED = {
    "leaf_blight": _lesions("blotch", BLACK, _LARGE),
    "healthy": (),
    "mosaic": _lesions("halo", YELLOW, _SMALL),
    "gall": _lesions("eye", PURPLE, _LARGE),
}


def _alone(labels: Mapping[str, tuple], share: float) -> dict[Combination, float]:
    return {(label,): share for label in labels}


SETS = {
    "apple": APPLE,
    "three": SampleSet(_THREE, _alone(_THREE, 1), {"train": 360, "val": 60, "test": 90}),
    "twelve": SampleSet(  # a third of the leaves has two labels
        _TWELVE,
        _alone(_TWELVE, 4) | {(_ILL[i], _ILL[i - step]): 1 for step in (3, 5) for i in range(len(_ILL))},
        {"train": 700, "val": 140, "test": 210},
    ),
    "many": SampleSet(  # a tenth of the leaves has two labels, of one crop
        _MANY,
        _alone(_MANY, 1) | dict.fromkeys(zip(list(_MANY)[::10], list(_MANY)[7::10], strict=True), 1),
        {"train": 1320, "val": 264, "test": 396},
    ),
    "skewed": SampleSet(
        _SKEWED,
        {("leaf_blight",): 0.5, ("healthy",): 0.35, ("mosaic",): 0.15},
        {"train": 300, "val": 60, "test": 90},
        rare={"gall": {"train": 3, "val": 1, "test": 1}},
    ),
}
