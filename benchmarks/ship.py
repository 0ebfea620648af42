"""Put new weights of a trunk or of an adapter into the package.

    python benchmarks/ship.py output/pretrain/trunk.safetensors --name swin_mini
    python benchmarks/ship.py output/ship --name drawn_things

A file contains a trunk, whose matrices are stored in 8 bits; a folder is the output of a finished
training on a trunk of the package. Both replace the files of a row of e3va/model_zoo/zoo.json, and
the row gets their sizes and sha256. A new trunk comes first: the adapters on the old one are no
longer of use.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save

from e3va import UserError
from e3va.model_zoo.download import sha256_of
from e3va.model_zoo.publish import publish
from e3va.model_zoo.rows import ADAPTER_FILES, ADAPTERS, TRUNKS
from e3va.model_zoo.store import ASSETS
from e3va.utils.atomic import atomic_open
from e3va.utils.errors import check_choice
from e3va.weights.checkpoint import load_safetensors
from e3va.weights.eight_bits import METADATA, pack

TABLE = ASSETS.parent / "model_zoo" / "zoo.json"


def ship_trunk(source: Path, row: dict) -> dict:
    """Write a trunk's asset with 8-bit matrices, and return its row."""
    tensors, about = load_safetensors(source)
    path = ASSETS / row["asset"]
    with atomic_open(path) as file:
        file.write(save(pack(tensors), metadata={**about, **METADATA}))
    return {**row, "size": path.stat().st_size, "sha256": sha256_of(path)}


def ship_adapter(output: Path, name: str, row: dict) -> dict:
    """Copy the adapter of a training to its asset, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        new = publish(output, name, folder, replace=True)
        for base in ADAPTER_FILES:
            with atomic_open(ASSETS / row["asset"] / base) as file:
                file.write((Path(folder) / ADAPTERS / name / base).read_bytes())
    scores = {metric: round(value, 1) for metric, value in new["scores"].items()}
    return {"asset": row["asset"], **new, "scores": scores}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a trunk's .safetensors, or a training's output")
    parser.add_argument("--name", required=True, help="name of the row in zoo.json")
    args = parser.parse_args()
    table = json.loads(TABLE.read_text())
    try:
        rows = table[ADAPTERS if args.source.is_dir() else TRUNKS]
        check_choice("--name", args.name, [n for n, row in rows.items() if "asset" in row])
        row = rows[args.name]
        if args.source.is_dir():
            rows[args.name] = ship_adapter(args.source, args.name, row)
        else:
            rows[args.name] = ship_trunk(args.source, row)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    with atomic_open(TABLE, "w") as file:
        file.write(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    print(f"{ASSETS / rows[args.name]['asset']}, {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
