"""Pictures: real PNG files, images where they belong, one calm look, and errors that teach."""

import itertools
import struct
import sys

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from PIL import Image

from gas.plotting.errors import error_plot
from gas.plotting.samples import sample_grid
from gas.plotting.style import ACCENT, MUTED, text_width, wrap
from gas.plotting.times import times_plot
from gas.schedule import Flow, VPLinear

RED, GREEN, BLUE = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)
BLACK, WHITE = (-1.0,) * 3, (1.0,) * 3
CURVES = {"DDIM": {4: 0.1, 8: 0.03}, "GS": {4: 0.01, 8: 0.001}}
SERIES = [("Uniform", [1, 0.5], [1, 0.5, 0.001]), ("GS", [1, 0.3], [])]


def plain(color, count=2, size=8):
    """A row of images of one colour."""
    return torch.tensor(color).view(1, -1, 1, 1).expand(count, -1, size, size)


def pixels(path):
    """The file as ``(H, W, 3)`` bytes; reads its header by hand to see that it is a PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(path) as image:
        assert struct.unpack(">II", data[16:24]) == image.size
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(
            image.height, image.width, 3
        )


def where(picture, color):
    """Bounding box ``(top, bottom, left, right)`` of this colour in [-1, 1], and the share that is so."""
    levels = ((torch.tensor(color) + 1) * 127.5).round().to(torch.uint8)
    y, x = (picture == levels).all(dim=2).nonzero().T
    box = (int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)
    return box, len(y) / ((box[1] - box[0]) * (box[3] - box[2]))


def accent_bytes():
    """The accent colour as a file has it."""
    return torch.tensor(list(bytes.fromhex(ACCENT[1:])), dtype=torch.uint8)


def accent(picture):
    """Rows of the picture that hold the accent colour."""
    return (picture == accent_bytes()).all(dim=2).any(dim=1).nonzero().flatten()


# --- sample_grid -------------------------------------------------------------------------------------------


def test_rows_stand_in_order_and_columns_in_line(tmp_path):
    rows = [("A\nMSE 1", plain(RED)), ("B", plain(GREEN)), ("C", plain(BLUE))]
    assert sample_grid(tmp_path / "g.png", rows, title="T") == tmp_path / "g.png"
    picture = pixels(tmp_path / "g.png")
    boxes, shares = zip(*(where(picture, color) for color in (RED, GREEN, BLUE)), strict=True)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(boxes))
    assert len({box[2:] for box in boxes}) == 1 and len({box[1] - box[0] for box in boxes}) == 1
    assert all(0.9 < share < 1 for share in shares)  # two images with a narrow gap


def test_columns_keep_the_order_of_the_seeds(tmp_path):
    shades = torch.tensor([-0.9, -0.3, 0.3]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    sample_grid(tmp_path / "g.png", [("A", shades)], title="")
    boxes = [where(pixels(tmp_path / "g.png"), (s, s, s)) for s in (-0.9, -0.3, 0.3)]
    assert all(share == 1 for _, share in boxes)
    assert boxes[0][0][3] < boxes[1][0][2] < boxes[1][0][3] < boxes[2][0][2]


def test_white_row_and_black_row(tmp_path):
    rows = [("black", plain(BLACK)), ("mark", plain(RED)), ("white", plain(WHITE))]
    sample_grid(tmp_path / "g.png", rows, title="T")
    picture = pixels(tmp_path / "g.png").double()
    (top, bottom, left, right), _ = where(picture.byte(), RED)
    height, strip = bottom - top, picture[:, left:right].mean(dim=(1, 2))
    assert strip[top - height - 31 : top - 32].mean() < 20
    assert strip[bottom + 32 : bottom + height + 31].mean() == 255


@pytest.mark.parametrize("size", [8, 32])
def test_pixel_art_stays_crisp(tmp_path, size):
    board = (torch.arange(size).view(-1, 1) + torch.arange(size)) % 2 * 2.0 - 1
    sample_grid(tmp_path / "g.png", [("", plain(RED, 4, size)), ("", board.expand(4, 3, -1, -1))], title="")
    picture = pixels(tmp_path / "g.png")
    (top, bottom, left, _), _ = where(picture, RED)
    side = bottom - top
    board_top = int((picture[bottom:, left + side // size // 2] == 0).all(dim=1).nonzero()[0]) + bottom
    drawn = picture[:, left : left + side, 0][board_top - side // size :]
    tile = drawn[: 2 * (side // size)]
    assert side % size == 0 and set(tile.unique().tolist()) <= {0, 255}


def test_large_images_are_averaged_not_sampled(tmp_path):
    board = (torch.arange(256).view(-1, 1) + torch.arange(256)) % 2 * 2.0 - 1
    sample_grid(tmp_path / "g.png", [("", board.expand(20, 3, -1, -1))], title="")
    picture = pixels(tmp_path / "g.png")
    inside = picture[picture.shape[0] // 2, 100:140].double()
    assert float((inside - 127.5).abs().max()) < 20


@pytest.mark.parametrize(("count", "scale"), [(1, 1), (8, 1), (8, 2), (16, 2), (40, 2)])
def test_the_page_fits_a_readme(tmp_path, count, scale):
    sample_grid(tmp_path / "g.png", [("DDIM", plain(RED, count))], title="T", note="n", scale=scale)
    height, width, _ = pixels(tmp_path / "g.png").shape
    assert 400 * scale <= width <= 900 * scale and 80 * scale < height < 300 * scale


def test_only_the_highlighted_row_is_accented(tmp_path):
    rows = [("A", plain(GREEN)), ("B", plain(BLUE))]
    sample_grid(tmp_path / "plain.png", rows, title="T")
    sample_grid(tmp_path / "lit.png", rows, title="T", highlight=1)
    lit = pixels(tmp_path / "lit.png")
    (top, bottom, _, _), _ = where(lit, BLUE)
    assert len(accent(pixels(tmp_path / "plain.png"))) == 0
    assert top - 12 <= accent(lit).min() and accent(lit).max() <= bottom + 12


def test_errors_stand_right_of_the_images_on_one_scale(tmp_path):
    """White where a pixel is the last row's, ink where it is furthest, and half as dark at half the difference."""
    shades = {"far": -0.5, "half": 0.0, "same": 0.5, "teacher": 0.5}
    rows = [(name, torch.full((2, 3, 8, 8), shade)) for name, shade in shades.items()]
    sample_grid(tmp_path / "plain.png", rows, title="")
    sample_grid(tmp_path / "g.png", rows, title="", errors=True)
    picture = pixels(tmp_path / "g.png")
    (top, bottom, _, _), _ = where(picture, (-0.5,) * 3)
    ink = torch.tensor([0x24, 0x29, 0x2F])
    white = torch.full((3,), 255)
    margin = 2 * 22
    column = picture[:, -margin - 20].double()
    middle, pitch = (top + bottom) // 2, where(picture, (0.0,) * 3)[0][0] - top
    for i, expected in enumerate((ink, (ink + white) / 2, white, white)):
        assert (column[middle + i * pitch] - expected).abs().max() <= 1
    assert where(picture, (-0.5,) * 3)[0][2] == where(pixels(tmp_path / "plain.png"), (-0.5,) * 3)[0][2]
    assert picture.shape[1] <= 1800


def test_long_texts_are_broken_and_dollars_are_text(tmp_path):
    sample_grid(tmp_path / "a.png", [("GS", plain(RED))], title="word " * 3, note="word")
    sample_grid(tmp_path / "b.png", [("GS $x_1 " * 9, plain(RED))], title="word " * 40, note="word " * 90)
    a, b = (pixels(tmp_path / name).shape for name in ("a.png", "b.png"))
    assert b[0] > a[0] + 100 and b[1] <= 1800
    assert all(text_width(line, 11) <= 200 for line in wrap("one two three " * 20, 200, 11))


# --- plots -------------------------------------------------------------------------------------------------


def test_times_plot_puts_each_dot_at_its_half_log_snr(tmp_path):
    times_plot(tmp_path / "t.png", [("GS", [1, 0.5], [1, 0.5, 0.001])], VPLinear(), highlight=0)
    picture = pixels(tmp_path / "t.png")
    assert picture.shape[1] == 1800
    orange = (picture[:, 130:] == accent_bytes()).all(dim=2).any(dim=0).nonzero().flatten().double()
    breaks = (orange.diff() > 20).nonzero().flatten() + 1
    first, second, end = (float(part.mean()) for part in orange.tensor_split(breaks))
    lam = VPLinear().half_log_snr(torch.tensor([1, 0.5, 0.001]))
    share = float((lam[1] - lam[0]) / (lam[2] - lam[0]))
    assert second == pytest.approx(first + share * (end - first), abs=2)


def test_times_plot_takes_any_mix_of_series(tmp_path):
    times_plot(tmp_path / "a.png", SERIES, VPLinear(), note="n", highlight=1)
    flow = [("Flow", torch.tensor([1, 0.5, 0.0]), []), ("B", [0.2], ())]
    times_plot(tmp_path / "b.png", flow, Flow(), scale=1)
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert a.shape[1] == 1800 and b.shape[1] == 900
    assert len(accent(a)) > 0 and len(accent(b)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "curves",
    [
        CURVES,
        {"one": {4: 0.5, 5: 0.4}},
        {"same": {1: 1e-3, 2: 1e-3}, "too": {1: 1e-3, 2: 1e-3}},
        {"short": {4: 0.1}, "long": {4: 0.2, 1000: 1e-9}},
        {f"solver {n}": {4: 0.1, 8: 0.01} for n in range(8)},
    ],
)
def test_error_plot_draws_any_curves(tmp_path, curves):
    error_plot(tmp_path / "e.png", curves, note="n", highlight=next(iter(curves)))
    picture = pixels(tmp_path / "e.png")
    assert picture.shape[1] == 1800 and 800 < picture.shape[0] < 1200
    assert len(accent(picture)) > 0


@pytest.mark.parametrize("curves", [{"A": {4: 0.02}, "GS": {4: 0.01}}, {"GS": {4: 1e-9}}])
def test_errors_at_one_nfe_are_bars(curves, tmp_path):
    """Lengths are in proportion from zero: of twice the error, a bar of twice the length."""
    path = error_plot(tmp_path / "bars.png", curves, highlight="GS")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)

    def longest(color):
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        # Numbers and names have the colour too: the longest run counts.
        rows = np.abs(pixels - wanted).sum(axis=2) < 12
        return max(len(list(run)) for row in rows for alike, run in itertools.groupby(row) if alike)

    if len(curves) == 2:
        assert longest(MUTED[0]) == pytest.approx(2 * longest(ACCENT), rel=0.02)
    assert longest(ACCENT) > 500


def test_a_smaller_error_is_drawn_lower(tmp_path):
    error_plot(tmp_path / "high.png", CURVES, highlight="DDIM")
    error_plot(tmp_path / "low.png", CURVES, highlight="GS")
    high, low = (accent(pixels(tmp_path / name)) for name in ("high.png", "low.png"))
    assert high.double().mean() < low.double().mean()


# --- all pictures ------------------------------------------------------------------------------------------

DRAW = {
    "sample_grid": lambda path, **k: sample_grid(path, [("A", plain(RED))], title="T", **k),
    "times_plot": lambda path, **k: times_plot(path, SERIES, VPLinear(), **k),
    "error_plot": lambda path, **k: error_plot(path, CURVES, **k),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_the_same_picture_is_the_same_bytes_whatever_the_caller_set(tmp_path, draw, monkeypatch):
    draw(tmp_path / "sub" / "a.png")
    settings = {"figure.dpi": 33, "font.size": 30, "axes.facecolor": "red", "text.color": "red"}
    for key, value in settings.items():
        monkeypatch.setitem(rcParams, key, value)
    draw(tmp_path / "sub" / "b.png")
    assert (tmp_path / "sub" / "a.png").read_bytes() == (tmp_path / "sub" / "b.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_pyplot_is_left_alone(tmp_path, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw(tmp_path / "a.png")


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_without_matplotlib_it_says_what_to_install(tmp_path, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib: pip install 'gas-solver\[plot\]'"):
        draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def grid(*rows, **options):
    sample_grid("never.png", list(rows), title="T", **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: grid(), r"rows must hold at least one \(label, images\) pair, got none"),
        (lambda: grid(("GS\nx", torch.zeros(8, 8))), r"row 'GS' must have shape \(K, C.*got \(8, 8\)"),
        (lambda: grid(("A", torch.zeros(2, 4, 8, 8))), r"C = 1 or 3, got \(2, 4, 8, 8\); decode latents"),
        (lambda: grid(("A", torch.zeros(0, 1, 8, 8))), r"got \(0, 1, 8, 8\)"),
        (lambda: grid(("A", plain(RED)), ("B", plain(RED, 3))), r"row 'B'.*\(2, 3, 8, 8\) of the first row"),
        (lambda: grid(("A", plain(RED).byte())), r"floats in \[-1, 1\], got torch.uint8; pass x / 1"),
        (lambda: grid(("A", plain((255.0,)))), r"got values from 255 to 255; pass images.clamp"),
        (lambda: grid(("A", plain((float("nan"),)))), r"in \[-1, 1\], got values from nan to nan"),
        (lambda: grid(("A", plain(RED)), highlight=1), r"highlight must be a row of 0 .. 0 or None, got 1"),
        (lambda: grid(("A", plain(RED)), scale=0), r"scale must be a whole number of at least 1, got 0"),
        (lambda: grid(("A", plain(RED, 99))), r"fewer columns to be legible, got 99; pass images\[:16\]"),
        (lambda: times_plot("never.png", [], Flow()), r"at least one \(name, times, steps\) triple"),
        (lambda: times_plot("never.png", [("A", [], [])], Flow()), r"times of 'A' must hold at least"),
        (lambda: times_plot("never.png", [("A", [999], [])], Flow()), r"'A' must lie in \[0, 1\].*got 999"),
        (lambda: times_plot("never.png", [("A", [1], [0])], Flow()), r"got only times at infinity"),
        (lambda: times_plot("never.png", SERIES, Flow(), highlight=2), r"a series of 0 .. 1 or None, got 2"),
        (lambda: times_plot("never.png", SERIES, Flow(), scale=0), r"scale must be a whole number"),
        (lambda: error_plot("never.png", {}), r"curves must hold at least one"),
        (lambda: error_plot("never.png", {"A": {}}), r"curve 'A' must hold at least one error, got none"),
        (lambda: error_plot("never.png", {"A": {0: 1.0}}), r"NFE of curve 'A' must be at least 1, got 0"),
        (lambda: error_plot("never.png", {"A": {4: 0.0}}), r"'A' at NFE 4 must be positive.*got 0.0"),
        (lambda: error_plot("never.png", {"A": {4: float("inf")}}), r"leave that point out and say so"),
        (lambda: error_plot("never.png", CURVES, highlight="X"), r"one of \['DDIM', 'GS'\] or None, got 'X'"),
        (lambda: error_plot("never.png", CURVES, scale=0), r"scale must be a whole number"),
    ],
)
def test_errors_teach(call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=text):
        call()
    assert not list(tmp_path.iterdir())
