"""Addressing for the grouped BatchNorm's Triton kernels: which rows a program has, and loads and stores of its tiles.

C: channels, R: rows of a group, S: parts of a group. `batchnorm_kernels` describes tiles, parts and groups.
"""

# the types of Triton's language are made by its decorators, which pyright cannot see through
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_count(part, R, S, TILE):
    """Rows among the tiles part, part + S, … of a group."""
    tiles = tl.cdiv(R, TILE)
    # only the group's last tile may have fewer than TILE rows, and one part alone reads it
    missing = tl.where((tiles - 1) % S == part, tiles * TILE - R, 0)
    return tl.cdiv(tiles - part, S) * TILE - missing


@triton.jit
def from_the_last(R, C, BLOCK_R, BLOCK_C):
    """Channels, first row and group of a program of an elementwise pass; neighbours share rows."""
    blocks = tl.cdiv(C, BLOCK_C)
    place = tl.program_id(0)
    channels = place % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    # from the last rows backwards: the reduction before this pass read them last, so they are still in the L2 cache
    first = (tl.cdiv(R, BLOCK_R) - 1 - place // blocks) * BLOCK_R
    return channels, first, tl.num_programs(1) - 1 - tl.program_id(1)


@triton.jit
def load_tile(tensor, first, rows, channels, R, C, group):
    """The tile at row `first` of a group in float32, zero outside, and which of its elements are inside."""
    inside = (first + rows < R)[:, None] & (channels < C)[None, :]
    # 64 bits for the start alone: a batch may have more than 2³¹ elements, a tile has not
    start = (group.to(tl.int64) * R + first) * C
    values = tl.load(tensor + start + rows[:, None] * C + channels[None, :], mask=inside, other=0.0)
    return values.to(tl.float32), inside


@triton.jit
def store_tile(tensor, values, inside, first, rows, channels, R, C, group):
    """Write a tile where `load_tile` reads one, in the tensor's dtype."""
    start = (group.to(tl.int64) * R + first) * C
    tl.store(tensor + start + rows[:, None] * C + channels[None, :], values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def load_pair(tensor, place, channels, C):
    """Both rows [C] of the pair number `place` in a tensor [..., 2, C]."""
    pair = tensor + tl.cast(place, tl.int64) * 2 * C + channels
    inside = channels < C
    return tl.load(pair, mask=inside, other=0.0), tl.load(pair + C, mask=inside, other=0.0)


@triton.jit
def store_pair(tensor, place, channels, C, one, other):
    """Write a pair where `load_pair` reads one."""
    pair = tensor + tl.cast(place, tl.int64) * 2 * C + channels
    tl.store(pair, one, mask=channels < C)
    tl.store(pair + C, other, mask=channels < C)


@triton.jit
def load_parameter(tensor, channels, C):
    """A weight or bias [C] in float32, zero outside."""
    return tl.load(tensor + channels, mask=channels < C, other=0.0).to(tl.float32)
