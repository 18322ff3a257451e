"""Plumbing without mathematics: the command line, errors that speak to the user, files that appear whole.

What could be wrong without changing a loss lives here, and in runtime.py where it needs torch; all else belongs to the
file whose idea it is.
"""
import errno
import gc
import gzip
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import zlib
from contextlib import contextmanager
from dataclasses import asdict, field, fields
from pathlib import Path
from reprlib import repr as shown  # of a long value its beginning and end, for an error message on one line

ROOT = Path(__file__).resolve().parents[1]

# A path from the command line that cannot be read or written, wherever a script finds out.
PATH_ERRORS = (errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG)


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


def check_ranges(cfg, from_1=(), **ranges):
    """UserError for a number that is not finite or out of its range: at least 0, at least 1 for the names in `from_1`,
    and for the names in `ranges` from its first to its second value, both allowed."""
    for name, value in vars(cfg).items():
        if type(value) not in (int, float):
            continue
        low, high = ranges.get(name, (int(name in from_1), math.inf))
        if not math.isfinite(value):
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be a finite number")
        if not low <= value <= high:
            allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")


@contextmanager
def speaking_to_the_user():
    """Around a script's main: every expected failure ends in one line and an exit code; a bug keeps its traceback.

    2: bad input. 130: Ctrl-C. 141: the reader of stdout has gone (`| head`), as a shell says it. 1: the disk is full.
    """
    prepare_streams()
    try:
        yield
        sys.stdout.flush()                       # or a full disk would show only when Python has ended
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {interrupt}" if interrupt.args else "interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.filename and error.errno in PATH_ERRORS:
            print(f"error: {error.filename2 or error.filename}: {error.strerror}; name another", file=sys.stderr)
            sys.exit(2)
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())     # Python writes the rest when it ends
        if error.errno == errno.EPIPE:
            sys.exit(141)
        print(f"error: {error.filename or 'the output'}: the disk is full", file=sys.stderr)
        sys.exit(1)


@contextmanager
def asking_the_hub(complaint):
    """Around calls of huggingface_hub: UserError with the complaint and the reason if the hub refuses."""
    from huggingface_hub.errors import HFValidationError
    try:
        yield
    except (HFValidationError, OSError) as error:        # its other errors are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{complaint} ({reason})") from error


def run_script(main, config, presets=None, argv=None):
    """Run a script: `main` with the settings from the command line, as parse_args reads them."""
    with speaking_to_the_user():
        return main(parse_args(config, presets, argv))


def prepare_streams():
    """Characters that the terminal cannot show are printed as \\u escapes, and bytes of stdin that are not UTF-8 are
    read as halves of surrogate pairs, which can be named in an error. Python sets a closed stream to None."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        print("error: standard output is closed; redirect it to a file or to /dev/null", file=sys.stderr)
        sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


@contextmanager
def collecting_by_hand():
    """No automatic garbage collection: in a run it pauses one process at a time, and the other 127 wait."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def say_next(*words):
    """Print the command that goes on from what a script has just written. words: as on the command line, unquoted."""
    print(f"next: {shlex.join(map(str, ['python', *words]))}", flush=True)


@contextmanager
def written_whole(path):
    """Yield a temporary path beside `path`; it takes its real name only if the block ends without an error.

    Works for files and for folders, and replaces what was there before; a link is followed. An error changes nothing.
    """
    path = Path(path).resolve()
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


def read_text(path, wanted):
    """The text of a whole file, plain or .gz; `wanted` says what the file should have been. UserError if it is missing
    or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wanted}")
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); download it again") from error


def read_json(path, what, kind=dict):
    """The JSON object in `path`, or value of another `kind`. UserError that says what the file should have been."""
    text = read_text(Path(path), f"{what} was expected there")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:       # not JSON, a number of 5,000 digits; or too deep
        raise UserError(f"{path}: {what} was expected, but it is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise UserError(f"{path}: {what} was expected, but it is no JSON object: {shown(value)}")
    return value


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
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no {what} ({error})") from error
    return made


def write_json(path, value):
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_json_lines(path, records):
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)


def git_commit():
    """The commit of this code, marked "-dirty" if files have changed; for the logs behind published numbers. A copy
    without git or without .git says what the environment variable COMMIT holds."""
    try:
        describe = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        commit = describe.stdout.strip()
    except OSError:                                     # git is not installed
        commit = ""
    return commit or os.environ.get("COMMIT", "unknown")
