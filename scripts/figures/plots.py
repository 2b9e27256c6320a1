"""The pictures in docs/figures."""

from pathlib import Path

from records import About, Spread, digits
from svg import FAINT, GRID, INK, Picture, Scale, ticks

BLUE, ORANGE, GREY = "#0969da", "#d4791f", "#8c959f"

# Title of a bar, its value if there is any, its colour.
Bar = tuple[str, Spread | None, str]


def bars(
    picture: Picture,
    left: float,
    right: float,
    top: float,
    groups: list[tuple[str, list[Bar]]],
    unit: str,
    most: float,
) -> None:
    """Groups of horizontal bars over one axis, with least and most."""
    marks = ticks(most * 1.02)
    # Space for the names at the left and for a value at the right.
    scale = Scale((0, marks[-1]), (left + 105, right - 40))
    y = top
    rows: list[tuple[float, Bar]] = []
    titles: list[tuple[float, str]] = []
    for title, group in groups:
        titles.append((y + 12, title))
        y += 20
        for bar in group:
            rows.append((y, bar))
            y += 20
        y += 8
    for mark in marks:
        picture.line([(scale(mark), top + 6), (scale(mark), y)], GRID)
        picture.text(scale(mark), y + 15, f"{mark:g}", 11, "middle", FAINT)
    picture.text((scale(0) + scale(marks[-1])) / 2, y + 32, unit, 12, "middle", FAINT)
    for at, title in titles:
        picture.text(left, at, title, 12.5, weight=600)
    for at, (name, spread, colour) in rows:
        picture.text(left + 98, at + 12, name, 12, "end")
        if spread is None:
            picture.text(scale(0) + 6, at + 12, "failed", 12, colour=FAINT)
            continue
        picture.rectangle(scale(0), at + 2, scale(spread.median) - scale(0), 13, colour)
        if spread.count > 1:
            middle = at + 8.5
            least, end = scale(spread.least), scale(spread.most)
            picture.line([(least, middle), (end, middle)], INK)
            for x in (least, end):
                picture.line([(x, middle - 3), (x, middle + 3)], INK)
        end = scale(max(spread.most, spread.median))
        picture.text(end + 6, at + 12, digits(spread.median), 12, weight=600)


def most_of(groups: list[tuple[str, list[Bar]]]) -> float:
    return max(spread.most for _, group in groups for _, spread, _ in group if spread)


def halves(
    path: Path, title: str, note: str, both: list[tuple[str, list[tuple[str, list[Bar]]], float]]
) -> None:
    """Bars side by side: the label of the axis, the groups, and the maximum of the axis."""
    rows = max(sum(len(group) for _, group in groups) for _, groups, _ in both)
    height = 55 + 28 * max(len(groups) for _, groups, _ in both) + 20 * rows + 68
    picture = Picture(780, height, title, note)
    for (left, right), (unit, groups, most) in zip(((20, 385), (400, 765)), both):
        bars(picture, left, right, 45, groups, unit, most)
    picture.write(path)


def of_rounds(about: About) -> str:
    if about.rounds == 1:
        return "one round"
    return f"median, least and most of {about.rounds} rounds"


def throughput(path: Path, groups: list[tuple[str, list[Bar]]], about: About) -> None:
    note = f"Two processes on loopback, {about.cores} cores; {of_rounds(about)}. {about.short}"
    most = most_of(groups)
    both = [("MB/s", groups[:2], most), ("MB/s", groups[2:], most)]
    halves(path, "Throughput beside libp2p-quic and libp2p-webrtc", note, both)


def memory(
    path: Path,
    connection: list[tuple[str, list[Bar]]],
    substream: list[tuple[str, list[Bar]]],
    about: About,
) -> None:
    note = f"Growth of the resident set; {of_rounds(about)}. {about.short}"
    both = [
        ("KiB for each idle connection", connection, most_of(connection)),
        ("KiB for each idle substream", substream, most_of(substream)),
    ]
    halves(path, "Memory beside libp2p-quic and libp2p-webrtc", note, both)


# Title of a line, its colour, whether it is dashed, its value at each mark of the axis.
Line = tuple[str, str, bool, list[Spread]]


def lines(
    picture: Picture,
    box: tuple[float, float, float, float],
    marks: list[str],
    unit: str,
    all_lines: list[Line],
) -> None:
    """Lines over an axis with marks at equal distances, in percent."""
    left, right, top, bottom = box
    down = Scale((0, 100), (bottom, top))
    along = Scale((0, len(marks) - 1), (left + 8, right - 8))
    for percent in (0, 20, 40, 60, 80, 100):
        picture.line([(left, down(percent)), (right, down(percent))], GRID)
        picture.text(left - 6, down(percent) + 4, f"{percent}", 11, "end", FAINT)
    for i, mark in enumerate(marks):
        picture.text(along(i), bottom + 17, mark, 11, "middle", FAINT)
    picture.text((left + right) / 2, bottom + 36, unit, 12, "middle", FAINT)
    taken: list[float] = []
    for title, colour, dashed, spreads in all_lines:
        points = [(along(i), down(spread.median * 100)) for i, spread in enumerate(spreads)]
        picture.line(points, colour, 2, dashed)
        for (x, y), spread in zip(points, spreads):
            picture.dot(x, y, colour)
            if spread.most - spread.least > 0.01:
                picture.line(
                    [(x, down(spread.least * 100)), (x, down(spread.most * 100))], colour, 1.5
                )
        label(picture, title, colour, points, taken, right)


def label(
    picture: Picture,
    title: str,
    colour: str,
    points: list[tuple[float, float]],
    taken: list[float],
    right: float,
) -> None:
    """At the right end of its line, and away from the others."""
    y = points[-1][1] + 4
    while any(abs(y - other) < 14 for other in taken):
        y += 2
    taken.append(y)
    picture.text(right + 4, y, title, 12, colour=colour, weight=600)


def goodput(
    path: Path,
    over_loss: tuple[list[str], list[Line]],
    over_round_trip: tuple[list[str], list[Line]],
    about: About,
    seconds: int,
) -> None:
    note = (
        f"Virtual time: real endpoints on a simulated link, {seconds} s each, no real network; "
        f"{of_rounds(about).replace('rounds', 'seeds').replace('round', 'seed')}. {about.short}"
    )
    title = "Goodput of one substream, % of a simulated link of 100 Mbit/s (virtual time)"
    picture = Picture(900, 390, title, note)
    for box, (marks, all_lines), unit, heading in (
        ((50, 350, 75, 300), over_loss, "loss, %", "50 ms round trip, over loss"),
        ((490, 745, 75, 300), over_round_trip, "round trip, ms", "Over round trip"),
    ):
        picture.text(box[0], 58, heading, 12.5, weight=600)
        lines(picture, box, marks, unit, all_lines)
    picture.write(path)
