"""Files from the internet, each checked against a fingerprint kept in the code."""

import hashlib
import http.client
import os
import secrets
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18

Report = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many, where the server says."""


def download_root() -> Path:
    """Where downloads go unless told otherwise: $XDG_CACHE_HOME/vdbjax, by default ~/.cache/vdbjax.

    Raises ValueError where neither is known.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "vdbjax"
    except RuntimeError as error:  # a user without an entry, as in some containers
        raise ValueError(f"no place for downloads ({error}); set XDG_CACHE_HOME or HOME") from None


def download(url: str, path: Path, *, sha256: str, report: Report = lambda done, total: None) -> None:
    """Writes what lies at `url` to `path`: all of it and with this SHA-256, or nothing.

    Proxies are those of the environment (`https_proxy`). Raises ValueError, in one line, where the file cannot be had
    or written, is cut off, or is another.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    stream = _open(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with stream, partial.open("wb") as target:
            found = _copied(url, stream, target, report)
        if found != sha256:
            raise ValueError(
                f"{url} is not the file it should be: SHA-256 {found[:16]}..., not {sha256[:16]}...;"
                f" try again, or name another mirror by --url"
            )
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); name another folder by --out") from error
    finally:
        if partial.exists():
            partial.unlink()


def _open(url: str) -> Any:
    """The answer, with its headers: http.client's or, of a file:// address, urllib's."""
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no address at all
        raise _cannot_fetch(url, error) from error


def _copied(url: str, stream: Any, target: IO[bytes], report: Report) -> str:
    """Copies all that comes, and gives its SHA-256."""
    length = stream.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    fingerprint, done = hashlib.sha256(), 0
    while chunk := _next(url, stream):
        target.write(chunk)
        fingerprint.update(chunk)
        done += len(chunk)
        report(done, total)
    if total is not None and done < total:  # a server that hangs up is no error to http.client
        raise _cannot_fetch(url, f"cut off after {done} of {total} bytes")
    return fingerprint.hexdigest()


def _next(url: str, stream: Any) -> bytes:
    try:
        return stream.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _cannot_fetch(url, error) from error


def _cannot_fetch(url: str, error: object) -> ValueError:
    reason = getattr(error, "reason", None) or error or type(error).__name__
    return ValueError(f"{url} cannot be fetched ({reason}); try again, or name a mirror by --url")


def is_whole(path: Path, sha256: str) -> bool:
    """Whether the file is there, with this fingerprint."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
