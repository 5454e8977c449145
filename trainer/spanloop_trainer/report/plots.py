"""Small inline SVG plots that stretch to their cell: an interval on a scale, a bar, the scale itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

# Markup here is safe to pass through the template unescaped: nothing but numbers goes into it, never a user's text.
# Every plot is drawn on a canvas 100 wide that the page stretches; strokes keep their width, text stays HTML.
_OPEN = '<svg class="plot" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}">'


@dataclass(frozen=True)
class Scale:
    """Maps values to 0 … 100."""

    low: float
    high: float
    step: float  # between ticks

    @classmethod
    def over(cls, values: list[float], *, include: tuple[float, ...] = (0.0,)) -> Scale:
        """A scale with round ends that holds all values."""
        low, high = min([*values, *include]), max([*values, *include])
        if high == low:
            high = low + 1.0
        span = high - low
        power = 10 ** math.floor(math.log10(span / 4))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    def at(self, value: float) -> float:
        """Where a value lies, cut to the ends."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        if round(self.step, digits) != round(self.step, 9):  # 0.25 needs one digit more than 0.2
            digits += 1
        count = round((self.high - self.low) / self.step)
        values = [self.low + number * self.step for number in range(count + 1)]
        return [(self.at(value), f"{value:.{digits}f}") for value in map(_no_negative_zero, values)]


def interval(
    scale: Scale,
    value: float,
    low: float | None,
    high: float | None,
    *,
    marks: dict[str, float] | None = None,
    zero: bool = False,
    emphasis: bool = False,
) -> Markup:
    """A dot with its error bar.

    Args:
        scale: shared by all rows of a table.
        value: the dot.
        low: end of the bar; None: no bar.
        high: the other end.
        marks: class → value of vertical reference lines, drawn in every row so that they join up.
        zero: draw a line at 0.
        emphasis: in the accent colour.
    """
    spread = f", 95 % interval {low:.3f} to {high:.3f}" if low is not None and high is not None else ""
    parts = [_OPEN.format(label=f"{value:.3f}{spread}")]
    parts += [_line(position, "grid") for position, _ in scale.ticks()]
    if zero:
        parts.append(_line(scale.at(0.0), "zero"))
    parts += [_line(scale.at(mark), f"mark {name}") for name, mark in (marks or {}).items()]
    tone = "strong" if emphasis else "plain"
    if low is not None and high is not None:
        parts.append(f'<path class="bar {tone}" d="M{scale.at(low):.2f} 5H{scale.at(high):.2f}"/>')
    # A line of no length with round ends is a dot that stretching leaves round.
    parts.append(f'<path class="dot {tone}" d="M{scale.at(value):.2f} 5h0"/>')
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704  # numbers only, see above


def share(value: float, largest: float) -> Markup:
    """A bar from 0; its value stands beside it."""
    width = 100 * value / largest if largest else 0.0
    bar = f'<rect class="fill" x="0" y="1" width="{width:.2f}" height="8"/>'
    return Markup(_OPEN.format(label=f"{value:.1f}") + bar + "</svg>")  # noqa: S704  # numbers only, see above


def axis(scale: Scale) -> Markup:
    """Labels under a column of plots; HTML, since text inside a stretched SVG would be stretched too."""
    ticks = scale.ticks()
    labels = []
    for position, text in ticks:
        # A narrow screen has room for the key labels only: zero and the upper end.
        key = ' class="key"' if position in (scale.at(0.0), ticks[-1][0]) else ""
        labels.append(f'<span{key} style="left:{position:.2f}%">{text.replace("-", "−")}</span>')
    return Markup('<div class="axis">' + "".join(labels) + "</div>")  # noqa: S704  # numbers only, see above


def _line(position: float, name: str) -> str:
    return f'<path class="{name}" d="M{position:.2f} 0V10"/>'


def _no_negative_zero(value: float) -> float:
    return round(value, 9) + 0.0
