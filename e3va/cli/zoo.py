"""The zoo's commands: list, get, publish."""

import argparse
from collections.abc import Sequence

from ..model_zoo.cache import cache_root
from ..model_zoo.mirror import MIRROR_VARIABLE, current
from ..model_zoo.progress import mebibytes, say
from ..model_zoo.publish import publish
from ..model_zoo.resolve import SCHEME, find_place, local_path
from ..model_zoo.rows import ADAPTER_FILES, AdapterRow, TrunkRow, ZooFile
from ..model_zoo.store import where
from ..model_zoo.table import table
from ..utils.command import run_command
from ..utils.tables import columns

DESCRIPTION = f"""\
Pretrained trunks and published adapters.

Files are kept in iopath's cache (FVCORE_CACHE moves it) and checked at every use. {MIRROR_VARIABLE}
names a folder or a web address where files are looked for in place of their public addresses."""


def add_commands(subparsers) -> None:
    """Add the commands to what ``ArgumentParser.add_subparsers`` returned; each sets ``run``."""
    listing = subparsers.add_parser("list", help="the trunks and adapters there are")
    listing.set_defaults(run=_list)

    getting = subparsers.add_parser("get", help="download one and print where it is")
    getting.add_argument("name", metavar="NAME", help="a name or an e3va:// address")
    getting.add_argument("--force", action="store_true", help="download it again if it is here")
    getting.set_defaults(run=_get)

    publishing = subparsers.add_parser("publish", help="put a finished training into a zoo")
    publishing.add_argument("output", metavar="OUTPUT", help="the training's output folder")
    publishing.add_argument("--name", required=True, help="of the adapter in the zoo")
    publishing.add_argument("--to", required=True, metavar="FOLDER", help="the zoo's folder")
    publishing.add_argument(
        "--url", default="", help="public address of FOLDER, if it is to be in the table"
    )
    publishing.add_argument(
        "--trunk",
        default="",
        help="name of the trunk in the zoo if its file's name does not tell; or a file, to "
        "publish it too",
    )
    publishing.add_argument("--replace", action="store_true", help="overwrite a published name")
    publishing.set_defaults(run=_publish)


def _list(args: argparse.Namespace) -> None:
    known = table()
    trunks = [
        (
            *(row.name, row.preset, row.pretraining, _size([row.file])),
            *(_known_sha256(row.file), where([row.file])),
        )
        for row in known.trunks.values()
    ]
    adapters = [_adapter_line(row) for row in known.adapters.values()]
    print("Trunks")
    head = ("name", "preset", "pretraining", "size", "sha256", "here")
    print("\n".join(columns(head, trunks, "<<<><<")))
    print("\nAdapters")
    if adapters:
        head = ("name", "framework", "model or config", "trunk", "size", "scores", "here")
        print("\n".join(columns(head, adapters, "<<<<><<")))
        for row in known.adapters.values():
            if row.trained_on:
                print(f"  {row.name}: trained on {row.trained_on}")
    else:
        print("  none published")
    mirror = current()
    print(f"\nCache: {cache_root()}" + (f"\nMirror: {mirror.address}" if mirror else ""))


def _adapter_line(row: AdapterRow) -> tuple[str, ...]:
    scores = ", ".join(f"{key} {value:.4g}" for key, value in row.scores.items())
    return (
        row.name,
        row.framework,
        row.config,
        row.trunk,
        _size(row.files),
        scores,
        where(row.files),
    )


def _known_sha256(file: ZooFile) -> str:
    if file.sha256:
        return "known"
    return "first digits" if file.sha256_prefix else "?"


def _size(files: Sequence[ZooFile]) -> str:
    sizes = [file.size for file in files]
    return "?" if None in sizes else mebibytes(sum(sizes))


def _get(args: argparse.Namespace) -> None:
    address = SCHEME + args.name.removeprefix(SCHEME)
    path = local_path(address, force=args.force, refresh=True)
    row = find_place(address).row
    if isinstance(row, TrunkRow):
        checked = "size and sha256 checked" if row.file.sha256 else "sha256 not known beforehand"
    else:
        checked = "size and sha256 checked"
    say(f"{address}: {checked}")
    print(path)


def _publish(args: argparse.Namespace) -> None:
    done = publish(
        args.output,
        args.name,
        args.to,
        url=args.url,
        trunk=args.trunk,
        replace=args.replace,
    )
    for base in ADAPTER_FILES:
        facts = done.row["files"][base]
        print(f"{done.folder / base}: {mebibytes(facts['size'])}, sha256 {facts['sha256']}")
    print(f"{done.table}: row {args.name!r}, trunk {done.row['trunk']}")
    print(f"use it with {MIRROR_VARIABLE}={args.to}: e3va://{args.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m e3va.model_zoo``; returns the exit status: 0, 1 after a user's mistake, said
    in one line on stderr, 130 after Ctrl-C."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m e3va.model_zoo", description=DESCRIPTION, formatter_class=raw
    )
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    args = parser.parse_args(arguments)
    return run_command(args.run, args, lambda: ": the same command goes on where it stopped")
