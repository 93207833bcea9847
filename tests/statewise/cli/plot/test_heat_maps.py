"""Pictures of attention and of gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from statewise.cli.plot.heat_maps import DPI, MAX_SIDE, draw_attention, draw_gates, visible


def attention(num_heads: int, num_items: int) -> np.ndarray:
    """Every query attends to itself and to the first item, and sees nothing behind itself."""
    weights = np.tile(np.eye(num_items, dtype=np.float32) * 0.75, (num_heads, 1, 1))
    weights[:, :, 0] += 0.25
    return weights


def gates(num_items: int, num_units: int) -> np.ndarray:
    """The more a unit's number, the more it is shut."""
    return np.tile(np.linspace(1, 0, num_units, dtype=np.float32), (num_items, 1))


def num_colours(picture: np.ndarray) -> int:
    red, green, blue = ((255 * picture[..., channel]).astype(np.int32) for channel in range(3))
    return len(np.unique((red << 16) + (green << 8) + blue))


@pytest.mark.parametrize("num_items", [1, 9, 300])
def test_attention_of_any_length_is_drawn_within_a_bounded_picture(tmp_path: Path, num_items: int) -> None:
    """Two layers with four heads: a picture in colour, wider than high, and never far beyond the longest side."""
    weights = {f"attention.{layer}": attention(4, num_items) for layer in range(2)}

    draw_attention(weights, ["a"] * num_items, tmp_path / "new" / "a.png", title="t")

    picture = imread(tmp_path / "new" / "a.png")
    height, width = picture.shape[:2]
    assert num_colours(picture) > 100
    assert height < width < 1.2 * MAX_SIDE * DPI
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png"]


def test_a_heat_map_shows_the_weights_where_they_are(tmp_path: Path) -> None:
    """Along the diagonal of one head the picture has the colour of 0.75, and what a query may not see is white."""
    draw_attention({"attention.0": attention(1, 8)}, list("abcdefgh"), tmp_path / "a.png", title="t")

    picture = imread(tmp_path / "a.png")[:, :, :3]
    picture = picture[:, : int(0.85 * picture.shape[1])]  # without the scale of colours
    expected = np.array(colormaps["viridis"](0.75**0.5)[:3])
    rows, columns = np.nonzero(np.abs(picture - expected).max(2) < 0.01)
    assert len(rows) > 1000
    # The further down, the further to the right.
    assert np.corrcoef(rows, columns)[0, 1] > 0.9
    corner = picture[rows.min() : (rows.min() + rows.max()) // 2, columns.max() - 20 : columns.max() - 2]
    assert (corner == 1).mean() > 0.9


@pytest.mark.parametrize("num_items", [1, 20, 500])
def test_gates_are_drawn_sorted_by_their_mean(tmp_path: Path, num_items: int) -> None:
    """Open units lie above shut ones, whatever their numbers; kinds that only some layers have leave a gap."""
    shown = {"forget_gate.0": gates(num_items, 30), "new_gate.1": 2 * gates(num_items, 30) - 1}

    draw_gates(shown, [], tmp_path / "g.png", title="t")

    picture = imread(tmp_path / "g.png")[:, :, :3]
    heights = [
        np.nonzero(np.abs(picture - np.array(colormaps["viridis"](value)[:3])).max(2) < 0.01)[0].mean()
        for value in (0.95, 0.05)
    ]
    assert heights[0] < heights[1]
    assert num_colours(picture) > 100


def test_labels_show_blanks_and_stay_short() -> None:
    """Blanks, line ends and control characters can be seen, and a long item is cut."""
    labels = [visible(item) for item in (" the", "\n", "\t", "\x00", "日", "x" * 40)]

    assert labels == ["␣the", "↵", "⇥", "\\x00", "日", "x" * 13 + "…"]


def test_items_that_look_like_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Text between dollar signs, and letters that no font here has, neither fail nor warn."""
    items = ["$\\frac{$", "$x^$", "\U00013000"]

    draw_attention({"attention.0": attention(1, 3)}, items, tmp_path / "a.png", title="t")
    draw_gates({"update_gate.0": gates(3, 4)}, items, tmp_path / "g.png", title="t")

    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "g.png"}
