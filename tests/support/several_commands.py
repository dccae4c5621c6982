"""Runs several scripts in a process that imports JAX once.

    python several_commands.py < commands.json > results.json

A command is a list of a script's path and its arguments; a result has its status and what it
printed, under the names that `subprocess.CompletedProcess` has.
"""

import contextlib
import io
import json
import pathlib
import runpy
import sys
import traceback


def run(script, *arguments):
    sys.argv = [script, *arguments]
    sys.path[0] = str(pathlib.Path(script).parent)
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    return {"returncode": status, "stdout": out.getvalue(), "stderr": error.getvalue()}


if __name__ == "__main__":
    print(json.dumps([run(*command) for command in json.load(sys.stdin)]))
