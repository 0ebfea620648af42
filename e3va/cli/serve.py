"""``e3va serve``: predict over HTTP, with several adapters over one trunk."""

import socket
from argparse import ArgumentParser, Namespace

from ..torchvision.loading import load_adapters
from ..utils.errors import UserError, brief
from ..utils.optional import require
from .arguments import add_device, add_model, names_of, pick_device, positive, whole

DESCRIPTION = """\
Answer HTTP requests with the predictions of adapters over one trunk, which is in memory once.

  e3va serve output/fruit output/leaves
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?tasks=fruit'

GET / is a page for a browser, GET /tasks lists the adapters, and POST /predict takes an image file
as the body and answers with JSON, or with a picture for drawn=true. Whoever reaches the address can
use the service; by default that is only this machine."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    add_model(parser, several=True)
    text = "address to listen on (default: %(default)s, which only this machine reaches)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=whole(0), default=8000, help="default: %(default)s")
    text = "requests in work at once; further ones get the status 503 (default: %(default)s)"
    parser.add_argument("--waiting", type=whole(1), default=64, metavar="N", help=text)
    text = "images of equal size in one pass of the trunk (default: %(default)s)"
    parser.add_argument("--batch-size", type=whole(1), default=4, metavar="N", help=text)
    text = "largest image file in MiB (default: %(default)g)"
    parser.add_argument("--max-mib", type=positive, default=32.0, metavar="MIB", help=text)
    text = "largest image in megapixels (default: %(default)g)"
    parser.add_argument("--max-megapixels", type=positive, default=50.0, metavar="MP", help=text)
    add_device(parser)


def run(args: Namespace) -> None:
    """Serve until Ctrl-C."""
    uvicorn = require("uvicorn", "e3va serve")
    require("fastapi", "e3va serve")
    from ..torchvision import service  # imports fastapi

    limits = service.Limits(args.waiting, args.batch_size, args.max_mib, args.max_megapixels)
    if args.port > 65535:
        raise UserError(f"--port {args.port}: expected a number up to 65535")
    models = load_adapters(
        names_of(args.model), args.trunk, pick_device(args.device), args.any_trunk
    )
    local = args.host in service.LOOPBACK
    app = service.make_app(models, limits, service.LOOPBACK if local else ("*",))
    # Before uvicorn starts, so that an error is one line, and what connects is answered.
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        listening = socket.create_server((args.host, args.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port} cannot be used ({brief(error)}): expected an "
            "address of this machine and a free port"
        ) from None
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    print(f"serving {', '.join(models.names)} at {address} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
