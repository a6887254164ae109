"""How a command fails: one line on stderr and exit code 2, never a traceback for what the user typed."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro
from tyro import MISSING_NONPROP

from vdbjax.limits import nearest


def main(run: Callable[[], None]) -> None:
    """Runs a command; a `ValueError` or a file that the system refuses ends it with `error: ...` and 2, Ctrl-C: 130."""
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text of its encoding
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else flushing it at exit fails again
        sys.exit(141)
    except FileNotFoundError as error:
        _fail(f"{error.filename}: no such file or folder" if error.filename else str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):  # XLA's word for it
            raise
        _fail("there is not enough memory for this")


def parse(
    options: Any,
    *,
    prog: str,
    description: str | None = None,
    args: Sequence[str] | None = None,
    default: Any = MISSING_NONPROP,
) -> Any:
    """What `tyro.cli` makes of the command line, with its errors in one line that offers the nearest names.

    `options` is a dataclass or a union of subcommands; it must only hold the options and not run the command, whose
    own output to stderr would be held back.
    """
    args = list(sys.argv[1:] if args is None else args)
    held_back = io.StringIO()
    try:
        with contextlib.redirect_stderr(held_back):
            parsed = tyro.cli(options, prog=prog, description=description, args=args, default=default)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        sections = _sections(held_back.getvalue())
        _fail(_unrecognized(sections, options, prog=prog, args=args, default=default) or _rejected(sections, stop))
    sys.stderr.write(held_back.getvalue())
    return parsed


def printable(text: str) -> str:
    """Text with what would drive a terminal, or break a line, as escapes: names in files may come from anybody."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def check_writable(path: Path, *, overwrite: bool = True) -> None:
    """Raises ValueError where a file could not be written to `path`: called before the work, not after.

    Figures, clips and numbers replace those of before; files that others are made from do so where asked alone.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file; name another")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; choose another name, or give --overwrite")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder {path.absolute().parent} does not exist")
    # The folder too: most files are written beside their place first.
    if not all(os.access(each, os.W_OK) for each in (path.absolute().parent, *([path] if path.exists() else []))):
        raise ValueError(f"{path} cannot be written: permission denied")


def check_table_folder(path: Path) -> None:
    """Raises ValueError where no folder of several runs could be made or gone on with at `path`."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{path}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{path} cannot be written: permission denied")
    if (path / "config.json").exists():
        raise ValueError(f"{path} is the folder of a run; name another, which the table's runs go into")


def _fail(message: str) -> NoReturn:
    print("error:", printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(2)


def _sections(box: str) -> list[str]:
    """The text between the rules of tyro's box, each section on one line; outside UTF-8 tyro draws rules of hyphens."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()]
    sections = re.split(r"^(?:╭.*╮|╰.*╯|─{3,}|-{3,})$", "\n".join(lines), flags=re.MULTILINE)
    return [" ".join(section.split()) for section in sections[1:]]  # the first is the title, or before the box


def _rejected(sections: list[str], stop: SystemExit) -> str:
    """Why tyro refused known options: a missing one, a value of the wrong type, or a config's own `ValueError`."""
    found = re.fullmatch(r"Error parsing (\S+): (.*)", sections[0])
    if not found:
        return sections[0]
    # The exception itself, since the box breaks long words; a config's own message names its fields already.
    message = str(stop.__context__.args[0]) if stop.__context__ and stop.__context__.args else found[2]
    return f"{found[1]}: {message}" if found[1].startswith("-") else message


def _unrecognized(sections: list[str], options: Any, *, prog: str, args: list[str], default: Any) -> str | None:
    """What is wrong where tyro met an unknown option, subcommand or argument; None where it met none."""
    text = "\n".join(sections)
    listed = re.search(r"^Unrecognized (?:or misplaced )?options: (.*)", text, re.MULTILINE)
    token = listed and next((a for a in args if a and f"{listed[1]} ".startswith((f"{a}, ", f"{a} "))), None)
    if not token:
        return None
    commands = re.search(r"^Available subcommands: (.*)", text, re.MULTILINE)
    if commands and not token.startswith("-"):
        near = nearest(token, commands[1].split(", "))
        return f"unknown command {token}; {near or f'choose from {commands[1]}'}"
    help_text = _help(options, prog=prog, args=args[: args.index(token)], default=default)
    usage = re.match(r"usage: (.*?) \[-h\]", help_text)
    see = f"see `{usage[1] if usage else prog} --help`"
    if not token.startswith("-"):
        return f"unknown argument {token}; {see}"
    name = token.split("=")[0]
    known = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.:-]*", help_text)))
    return f"unknown option {name}; {nearest(name.replace('_', '-'), known) or see}"


def _help(options: Any, *, prog: str, args: list[str], default: Any) -> str:
    """The help text at this place of the command line."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        tyro.cli(options, prog=prog, args=[*args, "--help"], default=default)
    return text.getvalue()
