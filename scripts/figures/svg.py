"""Pictures as SVG. They have a background, so that they are readable on light and dark pages."""

import math
from pathlib import Path
from xml.sax.saxutils import escape

INK, FAINT, GRID, PAPER, EDGE = "#1f2328", "#59636e", "#e4e8ec", "#ffffff", "#d1d9e0"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


class Picture:
    """Elements on a sheet with a title, and a note on the measurement at the bottom."""

    def __init__(self, width: int, height: int, title: str, note: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.elements: list[str] = []
        self.rectangle(0.5, 0.5, width - 1, height - 1, PAPER, edge=EDGE, radius=6)
        self.text(20, 30, title, size=16, weight=600)
        self.text(20, height - 14, note, size=11, colour=FAINT)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        anchor: str = "start",
        colour: str = INK,
        weight: int = 400,
        turn: bool = False,
    ) -> None:
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{colour}"{turned}>{escape(text)}</text>'
        )

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        edge: str = "none",
        radius: float = 0,
    ) -> None:
        self.elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
            f'rx="{radius}" fill="{colour}" stroke="{edge}"/>'
        )

    def line(
        self, points: list[tuple[float, float]], colour: str, width: float = 1, dashed: bool = False
    ) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"{dash}/>'
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>')

    def write(self, path: Path) -> None:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{FONT}" role="img">'
        )
        body = "\n".join([head, f"<title>{escape(self.title)}</title>", *self.elements, "</svg>"])
        path.parent.mkdir(exist_ok=True)
        path.write_text(body + "\n")


def ticks(most: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to at least the maximum."""
    raw = most / wanted
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


class Scale:
    """The positions of values on an axis."""

    def __init__(self, values: tuple[float, float], places: tuple[float, float]) -> None:
        self.values, self.places = values, places

    def __call__(self, value: float) -> float:
        (low, high), (begin, end) = self.values, self.places
        return begin + (value - low) / (high - low) * (end - begin)
