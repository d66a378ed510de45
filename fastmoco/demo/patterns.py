"""Grey patterns, one function each: the classes of `fastmoco.demo.made`.

A pattern maps a `Canvas` (pixel coordinates after a random rotation, zoom and distortion, in units of its cell) to
float32[H, W] in [0, 1]. Colour, light and noise are added by `fastmoco.demo.made`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastmoco.demo.canvas import Array, Canvas, fractal_noise, lookup


def _cells(canvas: Canvas) -> tuple[Array, Array, Array, Array]:
    """Cell indices and coordinates in [-0.5, 0.5) from the cell's centre."""
    i, j = np.floor(canvas.u), np.floor(canvas.v)
    return i, j, canvas.u - i - 0.5, canvas.v - j - 0.5


def _polar(canvas: Canvas) -> tuple[Array, Array]:
    """Radius in cells and angle in radians from a random centre near the canvas's."""
    shift = canvas.rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    u, v = canvas.u - shift[0], canvas.v - shift[1]
    return np.hypot(u, v), np.arctan2(v, u)


def _triangle_wave(x: Array) -> Array:
    """Distance to the nearest integer, in [0, 0.5]."""
    return np.abs(x - np.round(x))


def stripes(canvas: Canvas) -> Array:
    """Soft parallel bars."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * canvas.u)


def waves(canvas: Canvas) -> Array:
    """Hard-edged bars that swing from side to side."""
    return canvas.edge(_triangle_wave(canvas.u + 0.35 * np.sin(2 * np.pi * 0.6 * canvas.v)) - 0.25)


def zigzag(canvas: Canvas) -> Array:
    """Chevrons."""
    return canvas.edge(_triangle_wave(canvas.v + 1.6 * _triangle_wave(0.7 * canvas.u)) - 0.25)


def plaid(canvas: Canvas) -> Array:
    """Bands of several widths crossing at a right angle, each see-through."""
    rows, columns = (np.sign(np.sin(np.pi * x)) + np.sign(np.sin(3 * np.pi * x)) for x in (canvas.u, canvas.v))
    return 0.5 + (rows + columns) / 8


def checks(canvas: Canvas) -> Array:
    """A chessboard."""
    side = np.sin(np.pi * canvas.u) * np.sin(np.pi * canvas.v)
    return canvas.edge(side / np.float32(np.pi))


def grid(canvas: Canvas) -> Array:
    """Thin lines crossing at a right angle."""
    return canvas.edge(0.08 - np.minimum(_triangle_wave(canvas.u), _triangle_wave(canvas.v)))


def bricks(canvas: Canvas) -> Array:
    """A running bond with mortar, each brick in a grey of its own."""
    row = np.floor(2 * canvas.v)
    along = canvas.u + 0.5 * (row % 2)
    joint = np.minimum(_triangle_wave(along), 0.5 * _triangle_wave(2 * canvas.v))
    grey = 0.55 + 0.45 * lookup(canvas.table(), np.floor(along), row)
    return grey * canvas.edge(joint - 0.05)


def basket(canvas: Canvas) -> Array:
    """Strands that pass over and under one another."""
    i, j, x, y = _cells(canvas)
    across = (i + j) % 2 == 0
    strand = np.where(across, y, x)
    return 0.15 + 0.85 * np.cos(np.pi * strand) * canvas.edge(0.42 - np.abs(strand))


def dots(canvas: Canvas) -> Array:
    """Discs on a lattice."""
    _, _, x, y = _cells(canvas)
    return canvas.edge(0.32 - np.hypot(x, y))


def rings(canvas: Canvas) -> Array:
    """Circles on a lattice."""
    _, _, x, y = _cells(canvas)
    return canvas.edge(0.08 - np.abs(np.hypot(x, y) - 0.34))


def crosses(canvas: Canvas) -> Array:
    """Plus signs on a lattice."""
    _, _, x, y = _cells(canvas)
    x, y = np.abs(x), np.abs(y)
    return canvas.edge(np.minimum(0.38 - np.maximum(x, y), 0.11 - np.minimum(x, y)))


def stars(canvas: Canvas) -> Array:
    """Five-pointed stars, each turned its own way."""
    i, j, x, y = _cells(canvas)
    angle = np.arctan2(y, x) + 2 * np.pi * lookup(canvas.table(), i, j)
    point = 5 * np.abs(angle / (2 * np.pi) * 5 - np.round(angle / (2 * np.pi) * 5)) / 2.5
    return canvas.edge(0.46 - 0.28 * point - np.hypot(x, y))


def triangles(canvas: Canvas) -> Array:
    """A tiling of triangles, every other one filled."""
    v = canvas.v / np.float32(0.866)
    u = canvas.u - 0.5 * v
    a, b = u - np.floor(u), v - np.floor(v)
    return canvas.edge(0.7 * (1 - a - b))


def honeycomb(canvas: Canvas) -> Array:
    """The walls of six-sided cells."""
    height = np.float32(np.sqrt(3))
    u0, v0 = canvas.u - np.round(canvas.u), canvas.v - height * np.round(canvas.v / height)
    u1 = canvas.u - 0.5 - np.round(canvas.u - 0.5)
    v1 = canvas.v - height / 2 - height * np.round(canvas.v / height - 0.5)
    nearer = u0 * u0 + v0 * v0 < u1 * u1 + v1 * v1
    x, y = np.abs(np.where(nearer, u0, u1)), np.abs(np.where(nearer, v0, v1))
    return canvas.edge(0.08 - (0.5 - np.maximum(x, 0.5 * x + 0.866 * y)))


def scales(canvas: Canvas) -> Array:
    """Fish scales: rows of overlapping discs, shaded towards their rims."""
    grey = np.zeros_like(canvas.u)
    top = np.floor(2 * canvas.v)
    for row in (top + 1, top, top - 1):  # a row covers the one before it
        along = canvas.u + 0.5 * (row % 2)
        x, y = along - np.floor(along) - 0.5, canvas.v - row / 2
        radius = np.hypot(x, y)
        free = grey == 0
        grey = np.where(free & (radius < 0.56), 0.1 + 1.5 * radius, grey)
    return np.clip(grey, 0.0, 1.0)


def target(canvas: Canvas) -> Array:
    """Concentric circles."""
    radius, _ = _polar(canvas)
    return canvas.edge(_triangle_wave(radius) - 0.25)


def rays(canvas: Canvas) -> Array:
    """A sunburst."""
    radius, angle = _polar(canvas)
    spokes = int(canvas.rng.integers(8, 13))
    return canvas.edge(np.sin(spokes * angle) * radius / spokes)


def spiral(canvas: Canvas) -> Array:
    """Two arms winding outwards."""
    radius, angle = _polar(canvas)
    return canvas.edge(_triangle_wave(1.1 * radius + angle / np.float32(np.pi)) - 0.25)


def _voronoi(canvas: Canvas) -> tuple[Array, Array, Array]:
    """Distances to the nearest and second nearest of scattered points, and a grey of the nearest."""
    i, j = np.floor(canvas.u), np.floor(canvas.v)
    shift_u, shift_v, greys = canvas.table(), canvas.table(), canvas.table()
    first = np.full_like(canvas.u, np.inf)
    second, grey = first.copy(), np.zeros_like(canvas.u)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            u = i + di + lookup(shift_u, i + di, j + dj)
            v = j + dj + lookup(shift_v, i + di, j + dj)
            distance = np.hypot(canvas.u - u, canvas.v - v)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            grey = np.where(nearer, lookup(greys, i + di, j + dj), grey)
            first = np.where(nearer, distance, first)
    return first, second, grey


def mosaic(canvas: Canvas) -> Array:
    """Flat Voronoi cells."""
    return _voronoi(canvas)[2]


def cracks(canvas: Canvas) -> Array:
    """The borders between Voronoi cells."""
    first, second, _ = _voronoi(canvas)
    return canvas.edge(0.12 - (second - first))


def pebbles(canvas: Canvas) -> Array:
    """Rounded stones with dark gaps, lit from above."""
    first, second, grey = _voronoi(canvas)
    return np.clip((0.5 + 0.5 * grey) * np.sqrt(np.clip(2.2 * (second - first), 0, 1)), 0, 1)


def clouds(canvas: Canvas) -> Array:
    """Fractal noise."""
    return fractal_noise(canvas, 4)


def camouflage(canvas: Canvas) -> Array:
    """Blots with hard edges: noise cut at a level."""
    return canvas.edge(0.8 * (fractal_noise(canvas, 2) - 0.5))


def marble(canvas: Canvas) -> Array:
    """Bars folded by noise."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * (0.5 * canvas.u + 2.2 * fractal_noise(canvas, 3)))


def wood(canvas: Canvas) -> Array:
    """Noise drawn out along one direction."""
    stretched = Canvas(canvas.u * 2.5, canvas.v * np.float32(0.12), canvas.pixel, canvas.rng)
    return fractal_noise(stretched, 3)


def maze(canvas: Canvas) -> Array:
    """Diagonals, each cell leaning left or right at random."""
    i, j, x, y = _cells(canvas)
    lean = np.where(lookup(canvas.table(), i, j) < 0.5, x - y, x + y)
    distance = np.minimum(np.abs(lean), 1 - np.abs(lean))
    return canvas.edge(0.13 - distance * np.float32(0.707))


def arcs(canvas: Canvas) -> Array:
    """Quarter circles joining into loops and snakes (Truchet tiles)."""
    i, j, x, y = _cells(canvas)
    x = np.where(lookup(canvas.table(), i, j) < 0.5, x, -x)
    near = np.minimum(np.hypot(x - 0.5, y - 0.5), np.hypot(x + 0.5, y + 0.5))
    return canvas.edge(0.11 - np.abs(near - 0.5))


def confetti(canvas: Canvas) -> Array:
    """Short strokes strewn about, each turned its own way."""
    i, j, x, y = _cells(canvas)
    angle = np.pi * lookup(canvas.table(), i, j)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return canvas.edge(np.minimum(0.42 - np.abs(along), 0.1 - np.abs(across)))


PATTERNS: tuple[Callable[[Canvas], Array], ...] = (
    checks, dots, stripes, cracks, bricks, target, maze, clouds, zigzag, stars, mosaic, rays, honeycomb, wood,
    crosses, camouflage, plaid, arcs, scales, waves, rings, marble, triangles, basket, spiral, grid, pebbles,
    confetti,
)  # fmt: skip
