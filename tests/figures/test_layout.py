"""What a figure shows can be told apart and read."""

import pytest
from figure_rows import GROUP, LONG, ROWS, row

from mad.figures import drawing, tradeoff
from mad.storage import records


def box(figure, artist):
    """Return the edges of what is drawn, as parts of the figure's width and height."""
    return artist.get_window_extent().transformed(figure.transFigure.inverted())


def many(curves, seeds=2, **more):
    """Return a group of as many curves: of settings longer than a line, and a defense that keeps accuracy."""
    rows = [row("none", 0.0, seed, 0.9, 0.8, 0.0, **more) for seed in range(seeds)]
    for place in range(curves):
        settings = "surrogate=trained architecture=resnet34 gradient=all solver=exact epochs=30 " + str(place)
        own = {"defense_settings": settings if place > 4 else ""} | more
        name = ("mad", "top_k", "n" * 64, "argmax", "dp_sgd")[place] if place < 5 else "mad"
        rows += [
            row(name, at, seed, 0.9, 0.8 - at * place / 40 - seed / 50, at, **own)
            for at in (0.5, 0.95, 1.1)
            for seed in range(seeds)
        ]
    return records.frame(rows)


@pytest.mark.parametrize("curves", [1, 7, 20])
def test_nothing_is_cut_off_and_nothing_overprints(curves):
    figure = tradeoff.draw(many(curves, **LONG))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    heights = []
    for artist in (figure.texts[0], legend, *legend.get_texts()):
        edges = box(figure, artist)
        assert 0 <= edges.x0 < edges.x1 <= 1
        assert 0 <= edges.y0 < edges.y1 <= 1
        heights.append(edges)
    for axes in figure.axes:
        assert axes.bbox.height > 1.5 * figure.dpi
        assert heights[1].y1 <= box(figure, axes).y0 < box(figure, axes).y1 <= heights[0].y0
        texts = [text.get_window_extent().shrunk(0.9, 0.7) for text in axes.texts]
        assert len(texts) >= 3
        assert not any(each.overlaps(other) for place, each in enumerate(texts) for other in texts[:place])
        for bars in axes.containers:
            for x, y in axes.transData.transform(bars.lines[0].get_xydata()):
                assert not any(text.contains(x, y) for text in texts)
    said = [text.get_text() for text in legend.get_texts()]
    assert curves == 1 or "n" * 64 in said  # a name is not broken


def test_each_two_curves_differ_in_two_of_hue_marker_and_dash():
    found = list(drawing.styles([f"plug-in {place}" for place in range(28)]).values())
    found += [marks for marks in drawing.styles([*drawing.DEFENSES, "other"]).values()][-1:]
    for place, each in enumerate(found[:28]):
        assert all(sum(each[key] != other[key] for key in each) >= 2 for other in found[:place])
    labels = [*drawing.DEFENSES, *(f"mad ({place})" for place in range(18))]
    assert len({tuple(marks.values()) for marks in drawing.styles(labels).values()}) == len(labels)


def test_a_name_has_the_same_marks_in_every_figure():
    alone = records.frame([each for each in ROWS if each["defense"] in ("none", "random_noise")])
    found = [
        {bars.get_label(): bars.lines[0] for bars in tradeoff.draw(each).axes[0].containers} for each in (alone, GROUP)
    ]
    both = [lines["random_noise"] for lines in found]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in both}) == 1


def test_what_marks_a_place_hides_no_point():
    for axes in tradeoff.draw(GROUP).axes:
        lines = {line.get_label(): line for line in axes.lines}
        curves = [bars.lines[0] for bars in axes.containers]
        assert lines["undefended"].get_markerfacecolor() == "none"
        assert lines["undefended"].get_markersize() > max(each.get_markersize() for each in curves)
        below = max(lines["undefended"].get_zorder(), lines["ideal: no cost, chance for the thief"].get_zorder())
        assert below < min(each.get_zorder() for each in curves)


def test_what_bars_are_is_said():
    seeds = [{**each, "seed": seed, "fingerprint": f"{seed}"} for each in ROWS[3:4] + ROWS[5:] for seed in (0, 1, 2)]
    assert "bars: one standard deviation over 3 seeds" in tradeoff.title(records.frame(seeds))
    one = records.frame([each for each in ROWS if each["seed"] == 0])
    assert "one seed, no bars" in tradeoff.title(one)
    assert "a single seed has none" in tradeoff.title(GROUP)
    said = [text.get_text() for text in tradeoff.draw(GROUP).legends[0].get_texts()]
    assert {"mad, 1 to 2 seeds", "random_noise, 1 seed", "undefended, 2 seeds"} <= set(said)
    assert not any("seed" in text.get_text() for text in tradeoff.draw(one).legends[0].get_texts())


def test_bars_lie_within_the_axes():
    wide = [row("mad", 0.5, seed, 0.9 - seed / 2, 0.5, 0.4 + seed) for seed in (0, 1)]
    for axes in tradeoff.draw(records.frame([*ROWS[3:5], *wide])).axes:
        low, high = axes.get_xlim()
        ends = [x for each in axes.collections for path in each.get_paths() for x in path.vertices[:, 0]]
        assert low < min(ends) < max(ends) < high
