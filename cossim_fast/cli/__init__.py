"""The `cossim` command: parsing and printing; the work is done by the public functions.

One file a group of commands. They need typer and rich, so they are imported when the command runs.
"""

import sys

from cossim_fast._extras import require


def main() -> None:
    """Run the command. Exit status: 0 done, 1 a finding, 2 trouble, 130 interrupted."""
    try:
        for name in ("typer", "rich"):
            require(name, extra="cli")
    except ModuleNotFoundError as error:
        print(f"cossim: {error}", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # A pipe of Windows, or of an old locale, has no letters for most texts.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from cossim_fast.cli.app import app  # noqa: PLC0415

    app(prog_name="cossim")
