"""The subcommands of ``e3va zoo``: list, get, publish."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..model_zoo.catalogue import MIRROR_VARIABLE, TABLE_FILE, mirror, table
from ..model_zoo.download import cache_root, say
from ..model_zoo.hub import fetch
from ..model_zoo.publish import publish
from ..model_zoo.publish_hub import publish_on_hub
from ..model_zoo.resolve import find_place, local_path
from ..model_zoo.rows import ADAPTER_FILES, ADAPTERS, HUB, SCHEME, AdapterRow, TrunkRow
from ..model_zoo.store import where
from ..utils.errors import UserError
from ..utils.tables import columns

DESCRIPTION = f"""\
Pretrained trunks and published adapters.

Downloaded files are kept in iopath's cache folder, which the environment variable FVCORE_CACHE
moves, and are checked at every use. With {MIRROR_VARIABLE} set to a folder or a web address,
files come from there and not from their public addresses."""


def add_commands(subparsers) -> None:
    """Add the subcommands to the result of ``ArgumentParser.add_subparsers``; each sets ``run``."""

    def add(run: Callable, name: str, text: str) -> Callable:
        parser = subparsers.add_parser(name, help=text, description=f"{text.capitalize()}.")
        parser.set_defaults(run=run)
        return parser.add_argument

    add(_list, "list", "list all trunks and adapters, and where they are on this machine")
    option = add(_get, "get", "download a trunk or an adapter, and print the path of its files")
    option("name", metavar="NAME", help="name that e3va zoo list shows, or an address")
    option("--force", action="store_true", help="download even what is on this machine already")
    option = add(
        _publish, "publish", "publish a finished training's adapter in a zoo or on the hub"
    )
    option("output", metavar="OUTPUT", help="output folder of the training")
    option("--name", default="", help="name of the adapter in the zoo")
    option(
        "--to",
        required=True,
        metavar="PLACE",
        help="folder of the zoo, or hf://USER/NAME on the Hugging Face Hub; created if missing",
    )
    option(
        "--url", default="", help="public web address of the folder, to write into the zoo's table"
    )
    option(
        "--trunk",
        default="",
        help="name of the trunk in the zoo, if it differs from the name of the trunk's file; its "
        "address on the hub; or a file to publish with the adapter",
    )
    option("--license", default="", help="licence on the hub, such as apache-2.0")
    option("--replace", action="store_true", help="overwrite the adapter of this name")


def _list(args: argparse.Namespace) -> None:
    known, facts = table(), ("size", "sha256", "where")
    rows = [(row.name, row.preset, row.pretraining, *_facts(row)) for row in known.trunks.values()]
    print("Trunks")
    print("\n".join(columns(("name", "preset", "pretraining", *facts), rows, "<<<><<")))
    rows = [
        (
            *(row.name, row.framework, row.config, row.trunk),
            ", ".join(f"{key} {value:.4g}" for key, value in row.scores.items()),
            *_facts(row),
        )
        for row in known.adapters.values()
    ]
    print("\nAdapters")
    head = ("name", "framework", "model or config", "trunk", "scores", *facts)
    print("\n".join(columns(head, rows, "<<<<<><<")))
    for row in known.adapters.values():
        if row.trained_on:
            print(f"  {row.name}: trained on {row.trained_on}")
    place = mirror()
    print(f"\nCache: {cache_root()}" + (f"\nMirror: {place}" if place else ""))


def _facts(row: TrunkRow | AdapterRow) -> tuple[str, str, str]:
    sizes = [file.size for file in row.files]
    size = "?" if None in sizes else _mebibytes(sum(sizes))
    known = min(len(file.sha256) for file in row.files)
    return size, {0: "?", 64: "known"}.get(known, "first digits"), where(row.files)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 100_000 else f"{size} bytes"


def _get(args: argparse.Namespace) -> None:
    if args.name.startswith(HUB):
        path, address = fetch(args.name, args.force)
        say(address)
        print(path)
        return
    address = SCHEME + args.name.removeprefix(SCHEME)
    path = local_path(address, force=args.force, refresh=True)
    known = all(file.is_verifiable for file in find_place(address).row.files)
    say(f"{address}: {'size and sha256 checked' if known else 'the sha256 is not public'}")
    print(path)


def _publish(args: argparse.Namespace) -> None:
    if args.to.startswith(HUB):
        _publish_on_hub(args)
        return
    if not args.name or args.license:
        wrong = f"--license {args.license}" if args.name else "without --name"
        raise UserError(
            f"--to {args.to} {wrong}: a folder needs --name; --license is for {HUB}USER/NAME"
        )
    row = publish(
        args.output, args.name, args.to, url=args.url, trunk=args.trunk, replace=args.replace
    )
    for base in ADAPTER_FILES:
        facts, path = row["files"][base], Path(args.to, ADAPTERS, args.name, base)
        print(f"{path}: {_mebibytes(facts['size'])}, sha256 {facts['sha256']}")
    print(f"{Path(args.to, TABLE_FILE)}: row {args.name!r}, trunk {row['trunk']}")
    print(f"use it with {MIRROR_VARIABLE}={args.to}: {SCHEME}{args.name}")


def _publish_on_hub(args: argparse.Namespace) -> None:
    if args.name or args.url:
        raise UserError(
            f"--to {args.to} with {'--name' if args.name else '--url'}: the address is the name; "
            "leave the option out"
        )
    options = {"license": args.license, "trunk": args.trunk, "replace": args.replace}
    print(publish_on_hub(args.output, args.to, **options))
    print(f"use it with e3va predict {args.to} --input PHOTOS")
