"""Compares every config on 1, 2, 4 and 8 devices: is it the same run up to rounding?

example:
  cl-jax verify --configs=simclr_v1,byol --devices=1,2

Each config runs in its `debug` variant. The exit status is 1 where one differs. On a CPU the
devices are virtual.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import user_path
from cl_jax.data.tables import check_place, check_writable
from cl_jax.training import configs


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "cl-jax verify",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--configs",
        default="",
        help="names, with commas between them; paths and modules too (default: all of the package)",
    )
    options.add_argument(
        "--devices", default="1,2,4,8", help="each is compared with 1 (default %(default)s)"
    )
    options.add_argument(
        "--micro-batches",
        default="1,2",
        help="pieces of a step, where a method takes them (default %(default)s)",
    )
    options.add_argument("--steps", type=int, default=10, help="default %(default)s")
    options.add_argument(
        "--json",
        default="",
        help="write the records here; those of other configs in the file stay",
    )
    options.add_argument(
        "--page",
        default="",
        help="put the table (with --json: of all its records) into a Markdown page",
    )
    return options


def _numbers(option: str, text: str) -> list[int]:
    """The whole numbers of an option's value, each once, in order."""
    try:
        return sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise ConfigError(
            f"{option}={text}; expected whole numbers with commas between them, as {option}=1,2."
        ) from None


def _own_config(error: Exception) -> str:
    """Where a setting is to be made that an error asks for, such as the path of the data."""
    if "--config." not in str(error):
        return ""
    return (
        " `cl-jax verify` takes no settings: give a config file of your own that has it, "
        "--configs=FILE.py."
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    args = options.parse_args(argv)
    configs.see_working_folder()
    try:
        names = [name for name in args.configs.split(",") if name] or configs.names()
        for name in names:
            configs.load(name)
        devices = _numbers("--devices", args.devices)
        pieces = _numbers("--micro-batches", args.micro_batches)
        if pieces[0] < 1:
            raise ValueError(f"--micro-batches={args.micro_batches}; expected 1 or more.")
        if devices[0] < 1 or devices[-1] < 2 or args.steps < 1:
            raise ValueError(
                f"devices={devices}, steps={args.steps}; expected at least two devices and one "
                f"step."
            )
        check_place(args.json, ".json")
        place, page = (path and user_path(path) for path in (args.json, args.page))
    except ValueError as error:
        options.error(str(error))

    from cl_jax.checks import verify
    from cl_jax.core import parallel, xla

    xla.prepare()
    try:
        parallel.offer_devices(devices[-1])
        records = verify.stored(place) if place else {}
        if page:
            verify.around(page)
            check_writable(page)  # now, and not after the last config
    except ValueError as error:
        options.error(str(error))
    done, wrong = 0, []
    for name in names:
        for gone in [key for key in records if key.split()[0] == name]:
            del records[gone]
        try:
            for record, _ in itertools.chain.from_iterable(
                verify.verify(name, devices, args.steps, count) for count in pieces
            ):
                rows = verify.table([record])
                print(rows.split("\n", 2)[2] if done else rows, flush=True)
                done += 1
                if not record.same():
                    wrong.append(record.name)
                records[record.name] = record
                in_order = [records[key] for key in sorted(records, key=str.split)]
                if place:
                    verify.store(place, in_order, args.steps)
                if page:
                    verify.put_into(page, verify.table(in_order))
        except SaveError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except Exception as error:  # one that does not run must not hide the others
            print(
                f"{name} does not run: {type(error).__name__}: {error}{_own_config(error)}",
                file=sys.stderr,
                flush=True,
            )
            done += 1
            wrong.append(name)
    print(
        f"{done - len(wrong)} of {done} the same on {', '.join(map(str, devices))} devices"
        + (f"; not: {', '.join(wrong)}" if wrong else "")
    )
    return 1 if wrong else 0
