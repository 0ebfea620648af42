"""The subcommands of ``e3va zoo``: list, get, publish."""

import argparse
from collections.abc import Sequence

from ..model_zoo.cache import cache_root, say
from ..model_zoo.catalogue import MIRROR_VARIABLE, mirror, table
from ..model_zoo.publish import publish
from ..model_zoo.resolve import find_place, local_path
from ..model_zoo.rows import ADAPTER_FILES, SCHEME, ZooFile
from ..model_zoo.store import where
from ..utils.tables import columns

DESCRIPTION = f"""\
Pretrained trunks and published adapters.

Files are kept in iopath's cache folder (FVCORE_CACHE) and checked at every use. If
{MIRROR_VARIABLE} is set to a folder or a web address, files come from there and not from their
public addresses."""


def add_commands(subparsers) -> None:
    """Add the subcommands to the result of ``ArgumentParser.add_subparsers``; each sets ``run``."""
    listing = subparsers.add_parser("list", help="list all trunks and adapters")
    listing.set_defaults(run=_list)

    getting = subparsers.add_parser("get", help="download one and print its path")
    getting.add_argument("name", metavar="NAME", help="name or e3va:// address")
    getting.add_argument("--force", action="store_true", help="download it even if it is here")
    getting.set_defaults(run=_get)

    publishing = subparsers.add_parser("publish", help="add a finished training to a zoo")
    publishing.add_argument("output", metavar="OUTPUT", help="the training's output folder")
    publishing.add_argument("--name", required=True, help="name of the adapter in the zoo")
    publishing.add_argument("--to", required=True, metavar="FOLDER", help="the zoo's folder")
    publishing.add_argument("--url", default="", help="public address of FOLDER, for the table")
    publishing.add_argument(
        "--trunk",
        default="",
        help="name of the trunk in the zoo, if it differs from the trunk file's name; or a file, "
        "which is then published too",
    )
    publishing.add_argument("--replace", action="store_true", help="overwrite a published adapter")
    publishing.set_defaults(run=_publish)


def _list(args: argparse.Namespace) -> None:
    known = table()
    trunks = [
        (row.name, row.preset, row.pretraining, *_facts(row.files)) for row in known.trunks.values()
    ]
    adapters = [
        (
            *(row.name, row.framework, row.config, row.trunk),
            ", ".join(f"{key} {value:.4g}" for key, value in row.scores.items()),
            *_facts(row.files),
        )
        for row in known.adapters.values()
    ]
    facts = ("size", "sha256", "here")
    print("Trunks")
    print("\n".join(columns(("name", "preset", "pretraining", *facts), trunks, "<<<><<")))
    print("\nAdapters")
    head = ("name", "framework", "model or config", "trunk", "scores", *facts)
    print("\n".join(columns(head, adapters, "<<<<<><<")))
    for row in known.adapters.values():
        if row.trained_on:
            print(f"  {row.name}: trained on {row.trained_on}")
    place = mirror()
    print(f"\nCache: {cache_root()}" + (f"\nMirror: {place}" if place else ""))


def _facts(files: Sequence[ZooFile]) -> tuple[str, str, str]:
    sizes = [file.size for file in files]
    size = "?" if None in sizes else _mebibytes(sum(sizes))
    known = min(len(file.sha256) for file in files)
    return size, {0: "?", 64: "known"}.get(known, "first digits"), where(files)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 100_000 else f"{size} bytes"


def _get(args: argparse.Namespace) -> None:
    address = SCHEME + args.name.removeprefix(SCHEME)
    path = local_path(address, force=args.force, refresh=True)
    known = all(file.is_verifiable for file in find_place(address).row.files)
    say(f"{address}: {'size and sha256 checked' if known else 'the sha256 is not public'}")
    print(path)


def _publish(args: argparse.Namespace) -> None:
    done = publish(
        args.output, args.name, args.to, url=args.url, trunk=args.trunk, replace=args.replace
    )
    for base in ADAPTER_FILES:
        facts = done.row["files"][base]
        print(f"{done.folder / base}: {_mebibytes(facts['size'])}, sha256 {facts['sha256']}")
    print(f"{done.table}: row {args.name!r}, trunk {done.row['trunk']}")
    print(f"use it with {MIRROR_VARIABLE}={args.to}: {SCHEME}{args.name}")
