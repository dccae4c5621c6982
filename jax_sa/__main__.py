"""The command line: `python -m jax_sa`."""

import argparse
import sys

from jax_sa import replay
from jax_sa.cli import info, plan


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status. Bad input is one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m jax_sa", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, replay, plan):
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
