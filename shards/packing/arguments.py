"""The flags of `fastmoco pack --src ... --out ...`, which is also `fastmoco-shard --src ... --out ...`."""

from __future__ import annotations

from shards.command import Parser
from shards.format.scaling import PERCENTILES
from shards.packing.options import DUPLICATES, EXECUTORS, MAX_DISTANCE, NEAR_DISTANCE, SOURCES, UNREACHABLE, PackOptions

_COMMANDS = """\
commands:
  fastmoco-shard --src PATH --out PATH  pack images (this page)
  fastmoco-shard verify PATH            compare a shard set with its checksums
  fastmoco-shard info PATH              print totals, classes and sizes
  fastmoco-shard index PATH             turn WebDataset tars into a shard set
                                        without rewriting them

"""
_NOTES = """\
If two or more folders directly below --src hold images, they are the classes.
To continue an interrupted packing, run the same command again: the result is
the same bytes. Images that cannot be decoded in full are left out and listed
with the cause in OUT/quarantine.jsonl.
"""


def pack_parser(prog: str = "fastmoco pack") -> Parser:
    """The parser; its destinations are the fields of PackOptions."""
    parser = Parser(
        prog,
        description="Pack images into WebDataset tar shards for training.",
        # without a name of its own, packing shows the other commands of fastmoco-shard as well
        epilog=_NOTES if prog == "fastmoco pack" else _COMMANDS + _NOTES,
        examples=(
            "{prog} --src imagenet/train --out shards/",
            "{prog} --src photos/ --out shards/ --resize 256 --workers 16",
            "{prog} --src photos.zip --label-from parent --out shards/ --dry-run",
            "{prog} --src urls.parquet --path-column url --label-column class --out s3://bucket/set",
        ),
    )
    default = PackOptions("", "")
    _source_flags(parser)
    _filter_flags(parser)
    _image_flags(parser, default)
    _network_flags(parser, default)
    _run_flags(parser, default)
    return parser


def _source_flags(parser: Parser) -> None:
    add = parser.add_argument_group("source").add_argument
    help_src = (
        "folder, list (.txt), table (.csv, .tsv, .jsonl, .parquet), tars (also .tar.gz), a tar of tars, zips, Parquet"
        " or Arrow with images, an LMDB database, or a folder of these but the last; a path or a URL"
    )
    add("--src", required=True, metavar="PATH", help=help_src)
    add("--source", choices=SOURCES, default="auto", help="kind of --src (default: detected from its name and content)")
    add("--root", metavar="PATH", help="base of relative paths in a list or table (default: the folder that holds it)")
    add("--path-column", default="path", metavar="NAME", help="table column with paths or URLs (default: path)")
    help_image = "column of Parquet or Arrow files with the images themselves (default: found by its type)"
    add("--image-column", metavar="NAME", help=help_image)
    add("--label-column", metavar="NAME", help="table column with labels, numbers or names (default: none)")
    help_name = "table column with the images' names, kept beside their URLs (default: paths and URLs are the names)"
    add("--name-column", metavar="NAME", help=help_name)
    help_labels = (
        "file with names and labels (.csv, .tsv, .jsonl), in place of the source's own labels; or ILSVRC2012's"
        " development kit, for its validation set"
    )
    add("--labels", metavar="FILE", help=help_labels)
    help_synsets = "with a ground truth as --labels: file with a WNID and its number on each line (default: meta.mat)"
    add("--synsets", metavar="FILE", help=help_synsets)
    help_from = (
        "where labels come from: folder (the top one), folder:N (the Nth from the top), parent, archive, json:KEY (a"
        " field in tars), re:PATTERN (one group, in the path) or none (default: auto, as docs/how-to/sources.md says)"
    )
    add("--label-from", default="auto", metavar="RULE", help=help_from)
    help_exclude = "leave out files and folders by a shell pattern such as '*.gif' or 'val/*'; repeatable"
    add("--exclude", action="append", default=[], metavar="PATTERN", help=help_exclude)
    help_hidden = "pack hidden and system files and folders, which are left out by default (docs/format.md)"
    add("--include-hidden", action="store_true", help=help_hidden)
    help_splits = "pack all of a folder of splits (train, val), with these as the classes; by default train is packed"
    add("--all-splits", action="store_true", help=help_splits)
    add("--limit", type=int, metavar="N", help="pack only N images, sampled at random by --seed")


def _filter_flags(parser: Parser) -> None:
    add = parser.add_argument_group("filters (what they leave out is listed in OUT/quarantine.jsonl)").add_argument
    add("--min-side", type=int, metavar="N", help="leave out images whose shorter side has less than N pixels")
    help_aspect = "leave out images whose longer side is more than R times the shorter one"
    add("--max-aspect", type=float, metavar="R", help=help_aspect)
    add("--drop-blank", action="store_true", help="leave out images of a single colour")
    help_duplicates = (
        "of images with the same content (exact), or also of resized, recompressed or slightly cropped copies (near),"
        " pack one; reads all images once before packing"
    )
    add("--drop-duplicates", choices=DUPLICATES, help=help_duplicates)
    help_not_in = (
        "leave out what PATH holds too (a packed set, or anything that --src accepts), such as the images of a test;"
        " near copies included, unless --drop-duplicates exact is given; repeatable"
    )
    add("--not-in", action="append", default=[], metavar="PATH", help=help_not_in)
    help_distance = (
        "differing bits, of 256, up to which perceptual hashes make near copies"
        f" (0 to {MAX_DISTANCE}; default: {NEAR_DISTANCE})"
    )
    add("--near-distance", type=int, metavar="BITS", help=help_distance)


def _image_flags(parser: Parser, default: PackOptions) -> None:
    add = parser.add_argument_group("images").add_argument
    help_resize = "shrink images to this short side in pixels; never enlarges"
    add("--resize", type=int, metavar="SHORT_SIDE", help=help_resize)
    quality = f"JPEG quality, 1 to 95, of re-encoded images (default: {default.quality})"
    add("--quality", type=int, default=default.quality, metavar="Q", help=quality)
    side = f"leave out images with a side over N pixels after --resize (default: {default.max_side})"
    add("--max-side", type=int, default=default.max_side, metavar="N", help=side)
    pixels = f"leave out images with more than N pixels before --resize (default: {default.max_pixels})"
    add("--max-pixels", type=int, default=default.max_pixels, metavar="N", help=pixels)
    srgb = (
        "convert images with another colour profile, such as Display P3 or a printer's, to sRGB; JPEGs are re-encoded"
    )
    add("--srgb", action="store_true", help=srgb)
    keep = "pack 16-bit PNGs and TIFFs, grey or RGB, without loss, as 16-bit PNGs, and leave others out (extra deep)"
    add("--keep-16-bit", action="store_true", help=keep)
    percentiles = (
        "percentiles of all pixels, recorded for scaling 16 bits to [0, 1] (default: "
        f"{' '.join(map(str, PERCENTILES))}); affects the manifest alone, so the same command may change them"
    )
    add("--percentiles", type=float, nargs=2, metavar=("LOW", "HIGH"), help=percentiles)
    no_check = "do not decode JPEGs that are packed unchanged: faster, but damaged ones are not found"
    add("--no-check", dest="check", action="store_false", help=no_check)


def _network_flags(parser: Parser, default: PackOptions) -> None:
    add = parser.add_argument_group(
        "network (sources and outputs at URLs; the bytes of the set do not change)"
    ).add_argument
    silence = f"seconds until a connection or a silent server has failed (default: {default.timeout:g})"
    add("--timeout", type=float, default=default.timeout, metavar="SECONDS", help=silence)
    retries = f"retries of a failed request, after pauses of 1, 2, 4, ... 30 seconds (default: {default.retries})"
    add("--retries", type=int, default=default.retries, metavar="N", help=retries)
    unreachable = (
        "what to do about images whose server is out of reach or reports an error after all retries: fail their shards,"
        " which the same command packs later, or leave them out (default: fail)"
    )
    add("--unreachable", choices=UNREACHABLE, default=default.unreachable, help=unreachable)
    header = "header for web servers, such as 'Authorization: Bearer TOKEN'; repeatable; never logged or stored"
    add("--header", dest="headers", action="append", default=[], metavar="'NAME: VALUE'", help=header)
    add("--user-agent", metavar="TEXT", help="User-Agent header for web servers (default: fastmoco/VERSION)")


def _run_flags(parser: Parser, default: PackOptions) -> None:
    add = parser.add_argument_group("output and run").add_argument
    add("--out", required=True, metavar="PATH", help="folder or URL for the shards; created if missing")
    size = f"images per shard (default: {default.shard_size})"
    add("--shard-size", type=int, default=default.shard_size, metavar="N", help=size)
    no_names = "do not keep the images' names, which quarantine files and features then give (shard-000000.names)"
    add("--no-names", dest="names", action="store_false", help=no_names)
    seed = "seed of the packing order (default: 0)"
    add("--seed", type=int, default=0, metavar="N", help=seed)
    add(
        "--workers", type=int, default=0, metavar="N", help="processes, or concurrent Ray tasks (default: one per core)"
    )
    add("--executor", choices=EXECUTORS, default="local", help="where to pack (default: on this machine)")
    add("--ray-address", metavar="HOST:PORT", help="Ray cluster to pack on (default: start Ray on this machine)")
    overwrite = "replace a different shard set in --out; prints what it removes"
    add("--overwrite", action="store_true", help=overwrite)
    append = "add the images to the set in --out, in new shards; what it holds stays as it is (docs/format.md)"
    add("--append", action="store_true", help=append)
    add("--dry-run", action="store_true", help="print what would be packed, and stop before reading any image")
