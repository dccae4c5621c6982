"""The command line: `python -m jax_sa`."""

import argparse
import sys

import jax

from jax_sa.cli import info, plan, pool, replay
from jax_sa.cli.output import printable


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Bad input, a device without memory and an output that is closed are one line on stderr each,
    and status 2.
    """
    parser = argparse.ArgumentParser(prog="python -m jax_sa", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, replay, pool, plan):
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, TypeError) as error:
        reason = str(error)
    except MemoryError as error:
        reason = f"not enough memory: {error}"
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
    print(f"error: {printable(reason)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
