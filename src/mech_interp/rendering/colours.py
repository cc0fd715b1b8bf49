"""One look for all renderers: a diverging and a sequential scale, a palette, number texts.

The diverging scale runs orange - white - blue, which people with any common colour deficiency can tell
apart; blue is the accent colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mech_interp.views import finite

Rgb = tuple[int, int, int]

DIVERGING: Sequence[Rgb] = (
    (127, 59, 8),
    (179, 88, 6),
    (224, 130, 20),
    (253, 184, 99),
    (250, 224, 188),
    (250, 250, 248),
    (205, 222, 238),
    (133, 180, 215),
    (67, 138, 191),
    (33, 102, 172),
    (8, 48, 107),
)
SEQUENTIAL: Sequence[Rgb] = DIVERGING[5:]
ACCENT: Rgb = (33, 102, 172)
CONTRAST: Rgb = (179, 88, 6)
QUIET: Rgb = (150, 158, 168)
PALETTE: Sequence[Rgb] = (ACCENT, (213, 94, 0), (0, 142, 105), (120, 120, 120), (170, 80, 150), (196, 148, 0))

# Lighter versions for text on a terminal's dark or light background.
TERMINAL_ACCENT: Rgb = (72, 145, 216)
TERMINAL_CONTRAST: Rgb = (221, 122, 32)
TERMINAL_PALETTE: Sequence[Rgb] = (
    TERMINAL_ACCENT,
    TERMINAL_CONTRAST,
    (30, 165, 125),
    QUIET,
    (200, 110, 180),
    (196, 158, 20),
)


def hexadecimal(rgb: Rgb) -> str:
    """`#2166ac`, as both rich and matplotlib read it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def value_limits(
    values: Iterable[float | None], diverging: bool, fixed: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Ends of a colour scale: symmetric about 0 when diverging; never of zero width."""
    known = list(fixed) if fixed is not None else finite(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if diverging:
        reach = max(abs(low), abs(high)) or 1.0
        return -reach, reach
    if high > low:
        return low, high
    return (low - 0.5, low + 0.5) if low else (0.0, 1.0)


def scale_colour(value: float, limits: tuple[float, float], diverging: bool) -> Rgb:
    """The colour of a value between the limits (clipped to them)."""
    stops = DIVERGING if diverging else SEQUENTIAL
    low, high = limits
    share = (
        0.5 + (value - low - (high - low) / 2) / (high - low) if math.isfinite(value) else float(value > 0)
    )
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    part = place - index
    first, second = stops[index], stops[index + 1]
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ink(background: Rgb) -> Rgb:
    """Black or white, whichever reads better on the background (relative luminance, WCAG)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (20, 20, 20) if luminance > 0.25 else (255, 255, 255)


def short(value: float | None) -> str:
    """A number in about five characters; a missing one is a dash."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size and (size < 0.0005 or size >= 10_000):
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.095 or not size else 3
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def decimals(values: Iterable[float | None]) -> int | None:
    """Decimals that suit all the values of one chart; None where only `short` can show them."""
    reach = max((abs(value) for value in finite(values)), default=0.0)
    if reach >= 10_000 or 0 < reach < 0.0095:
        return None
    return 0 if reach >= 99.95 else 1 if reach >= 9.995 else 2 if reach >= 0.095 or not reach else 3


def aligned(value: float | None, digits: int | None) -> str:
    """A number with the decimals of its chart, so that columns of numbers compare at a glance."""
    if value is None or digits is None or not math.isfinite(value):
        return short(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def clipped(text: str, width: int) -> str:
    """The text in at most `width` characters, an ellipsis where it was cut."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…" if width > 0 else ""
