"""Plumbing without mathematics: the command line, errors that speak to the user, files that appear whole.

What could be wrong without changing a loss lives here, and in runtime.py where it needs torch; all else belongs to the
file whose idea it is.
"""
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, field, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class UserError(ValueError):
    """Input that the user can mend: the message says which file, what is wrong, what to do. Exit code 2."""


def parse_args(config, presets=None, argv=None):
    """Fill the dataclass `config` from the command line: `script.py [preset] --learning-rate 3e-4`.

    One flag per field; the field's trailing comment is its --help text, so a setting is declared once.
    With `presets` (name -> instance) the first argument names the one whose values the flags then override.
    """
    try:
        import tyro
    except ImportError as error:                        # a GPU machine without it can still run every default
        if presets is None and not (sys.argv[1:] if argv is None else argv):
            return config()
        raise UserError("reading flags needs tyro: pip install tyro, or run this without any") from error
    if presets is None:
        return tyro.cli(config, args=argv)
    described = {name: ((type(preset).__doc__ or "").strip(), preset) for name, preset in presets.items()}
    return tyro.extras.overridable_config_cli(described, args=argv)


def free(default):
    """The default of a setting that may change before an interrupted run resumes: it does not affect the result."""
    return field(default=default, metadata={"free": True})


def fixed_settings(cfg):
    """The settings that a resumed run must share with the run that it continues: all that are not declared `free`."""
    values = asdict(cfg)
    return {f.name: values[f.name] for f in fields(cfg) if not f.metadata.get("free")}


def check_ranges(cfg, ranges):
    """UserError for a setting outside its range. ranges: name -> (lowest, highest), both allowed; None is no limit."""
    for name, (low, high) in ranges.items():
        value = getattr(cfg, name)
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            allowed = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")


@contextmanager
def speaking_to_the_user():
    """Around a script's main: bad input ends in one line and exit code 2, Ctrl-C in 130; a bug keeps its traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {interrupt}" if interrupt.args else "interrupted", file=sys.stderr)
        sys.exit(130)


@contextmanager
def written_whole(path):
    """Yield a temporary path beside `path`; it takes its real name only if the block ends well.

    Works for files and for folders, which then take the place of what stood there. A failure leaves the old as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)                  # a folder cannot be renamed over another that is not empty
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def read_json(path, what):
    """The JSON object in `path`, or a UserError that says what the file should have been."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {what} was expected there")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {what} was expected, but it is not JSON ({error})") from error


def read_json_lines(path, what, wrote, make):
    """[make(object) of each line]. UserError names the line that is no `what`: make raises KeyError for what is not in
    it, ValueError, TypeError or AttributeError for what is wrong; `wrote` says where such files come from."""
    path, made = Path(path), []
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wrote}")
    if not path.stat().st_size:
        raise UserError(f"{path}: holds no {what}")
    for number, line in enumerate(path.read_bytes().rstrip(b"\n").split(b"\n"), 1):     # str.splitlines cuts at U+2028
        try:
            made.append(make(json.loads(line)))
        except KeyError as error:
            raise UserError(f"{path}, line {number}: no {error} in it") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: no {what} ({error})") from error
    return made


def write_json(path, value):
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path, records):
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def git_commit():
    """The commit of this code, marked "-dirty" if files have changed; for the logs behind published numbers. A copy
    without git or without .git says what the environment variable COMMIT holds."""
    try:
        describe = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        commit = describe.stdout.strip()
    except OSError:                                     # git is not installed
        commit = ""
    return commit or os.environ.get("COMMIT", "unknown")
