"""`storage info`, `check`, `backup`, `compact`: what an operator does to the file of a log on disk."""

import sys
import time

import click
import msgspec

from ..errors import StorageError
from ..log import upkeep
from .options import config_option, found_config, json_option, load, print_json, print_out

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

storage_option = click.option(
    "--storage",
    "path",
    type=click.Path(dir_okay=False),
    help="The file; left out: `storage.path` of the configuration.",
)


@click.group()
def storage() -> None:
    """Look after the file of a log on disk."""


def _meant(path: str | None, config_path: str | None) -> str:
    """Return the file that is meant. Raises `click.ClickException` if none is."""
    path = path or load(found_config(config_path)).storage.path
    if path is None:
        raise click.ClickException("no log on disk is configured: say which file by --storage, or `path` in [storage]")
    return path


@storage.command("info")
@config_option
@storage_option
@json_option
def info(config_path: str | None, path: str | None, *, as_json: bool) -> None:
    """Say what is in the file. May be asked while a broker runs."""
    path = _meant(path, config_path)
    try:
        found = upkeep.report(path)
    except StorageError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_out(msgspec.json.encode(found))
        return
    print_out(
        f"{found.path}: {_size(found.bytes)}, {_size(found.wal_bytes)} in the WAL, {_size(found.unused_bytes)} unused"
    )
    print_out(f"free on its disk: {_size(found.disk_free_bytes)}")
    if found.used_by_pid is None:
        print_out(f"no broker has it; the last one {'closed it' if found.clean else 'did not close it'}")
    else:
        print_out(f"a broker has it: pid {found.used_by_pid}")
    if found.oldest_at is not None and found.newest_at is not None:
        now = time.time()
        ages = f"{_age(now - found.oldest_at)} to {_age(now - found.newest_at)} old"
        print_out(f"events: {found.rows['events']:,}, {ages}")
    for table, count in found.rows.items():
        print_out(f"rows of {table}: {count:,}")


@storage.command("check")
@config_option
@storage_option
@json_option
def check(config_path: str | None, path: str | None, *, as_json: bool) -> None:
    """Look at every page of the file, and say whether all is well. May be done while a broker runs."""
    path = _meant(path, config_path)
    try:
        faults = upkeep.check(path)
    except StorageError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json({"path": path, "faults": faults})
        sys.exit(1 if faults else 0)
    if faults:
        raise click.ClickException("\n".join(f"{path}: {fault}" for fault in faults))
    print_out(f"{path}: ok")


@storage.command("backup")
@config_option
@storage_option
@click.argument("copy", type=click.Path(dir_okay=False))
@json_option
def backup(config_path: str | None, path: str | None, copy: str, *, as_json: bool) -> None:
    """Copy the file as it is at this moment to COPY. May be done while a broker runs."""
    path = _meant(path, config_path)
    try:
        size = upkeep.backup(path, copy)
    except StorageError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json({"copy": copy, "bytes": size})
    else:
        print_out(f"{copy}: {_size(size)}")


@storage.command("compact")
@config_option
@storage_option
@json_option
def compact(config_path: str | None, path: str | None, *, as_json: bool) -> None:
    """Give back to the disk what is unused in the file. No broker may have it meanwhile."""
    path = _meant(path, config_path)
    try:
        before, after = upkeep.compact(path)
    except StorageError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json({"path": path, "bytes_before": before, "bytes": after})
    else:
        print_out(f"{path}: {_size(before)} before, {_size(after)} now")


def _size(number: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in _UNITS:
        if number < 1_024 or unit == _UNITS[-1]:
            break
        number /= 1_024
    return f"{number:.1f} {unit}" if unit != "B" else f"{number:.0f} B"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
