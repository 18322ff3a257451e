"""`prepare/pubmed.py download`: fetch PubMed's annual baseline, over a thousand files, from NCBI's public server.

    python prepare/pubmed.py download --out data/baseline                 # all of it
    python prepare/pubmed.py download --out data/baseline --files 3       # a part, to try things out

Teaches how to fetch many gigabytes over an unreliable connection: resume where it broke off (Range), verify the
checksum of every file, open one connection at a time, and wait longer each time the server is busy.
A file gets its name in --out when its MD5 is right, and MD5SUMS then lists it for `md5sum -c MD5SUMS`.
You should see a progress bar, a line for every failure, and at the end the files that are missing, with exit code 2.
The same command again fetches these.
Not here: reading the files (plumbing/documents.py), their terms of use (prepare/__init__.py).
"""
import hashlib
import os
import re
import ssl
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from plumbing.common import UserError, check_ranges, say_next, written_whole

USER_AGENT = "nanoBioMedLM (prepare/pubmed.py download; one connection)"
LINK = re.compile(r'href="(?:[^"]*/)?(pubmed\d\dn(\d{4,9})\.xml\.gz)"')
BLOCK = 1 << 18            # bytes read at a time
PAUSE = 1.0                # seconds between files
TIMEOUT = 60.0             # seconds without a byte after which the connection counts as lost
WAIT = 2.0                 # seconds to wait after a failure; doubled after each further one,
LONGEST_WAIT = 300.0       # up to this
LONGEST_ASKED = 3600.0     # the longest wait that the server may ask for
RETRIES = 8                # failures in a row without a new byte before a file is given up
CHECKSUM_TRIES = 3


@dataclass(frozen=True)
class Download:
    """Fetch PubMed's annual baseline."""
    out: Path = Path("data/baseline")   # verified files in this folder are not fetched again
    url: str = "https://ftp.ncbi.nlm.nih.gov/pubmed/baseline/"    # a page that links to pubmedYYnNNNNN.xml.gz
    first: int = 1                      # number of the first file
    files: int = 0                      # how many files; 0 is all


class Missing(Exception):
    """A file that cannot be fetched now; the message says why."""


def download(cfg):
    """Fetch the missing files. Returns the names of all files; UserError if some could not be fetched."""
    check_ranges(cfg)
    if not cfg.url.startswith(("http://", "https://")):
        raise UserError(f"--url {cfg.url}: not an address that begins with https:// or http://")
    if cfg.out.exists() and not cfg.out.is_dir():
        raise UserError(f"{cfg.out}: --out must be a folder")
    cfg = replace(cfg, url=cfg.url.rstrip("/") + "/")
    names = choose(cfg)
    cfg.out.mkdir(parents=True, exist_ok=True)
    verified = read_sums(cfg.out)
    to_fetch = [name for name in names if not (name in verified and (cfg.out / name).is_file())]
    if len(to_fetch) < len(names):
        print(f"{len(names) - len(to_fetch):,} of {len(names):,} files are already there and verified")

    missing = fetch_all(cfg, to_fetch)

    print(f"{cfg.out}: {len(names) - len(missing):,} of {len(names):,} files, each with the MD5 that the server gives")
    if missing:
        raise UserError(f"{len(missing):,} of {len(names):,} files are missing: "
                        + ", ".join(f"{name} ({why})" for name, why in missing.items())
                        + "; run the same command again to fetch them")
    say_next("tokenizer.py", "train", "--inputs", cfg.out, "--out", "data/tokenizer")
    return names


def choose(cfg):
    """The names of the files that --out must have at the end, in order."""
    try:
        page = get(cfg, cfg.url).decode("utf-8", "replace")
    except Missing as why:
        raise UserError(f"{cfg.url}: {why}; check the connection, or --url") from why
    number = {name: int(digits) for name, digits in LINK.findall(page)}
    if not number:
        raise UserError(f"{cfg.url}: has no links to pubmedYYnNNNNN.xml.gz; is it the folder of the baseline?")

    names = sorted((name for name in number if number[name] >= cfg.first), key=number.get)
    names = names[:cfg.files] if cfg.files else names
    if not names:
        found = number.values()
        raise UserError(f"--first {cfg.first}: the baseline's files are numbered {min(found)} to {max(found)}")
    years = {path.name[:8] for path in cfg.out.glob("pubmed[0-9][0-9]n*.xml.gz")}
    if other := sorted(years - {name[:8] for name in names}):
        raise UserError(f"{cfg.out}: holds files of {other[0]}, but the server has {names[0][:8]}. Each year's "
                        "baseline contains all articles, so choose another --out")
    return names


# ---- One file ----


def fetch_all(cfg, names):
    """Fetch the files one after the other. Returns {name: why} of those that could not be fetched."""
    missing = {}
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        for i, name in enumerate(names):
            if i:
                time.sleep(PAUSE)
            bar.set_description(f"{name} ({i + 1:,} of {len(names):,})")
            try:
                fetch(cfg, name, bar)
            except Missing as why:
                missing[name] = why
                tqdm.write(f"given up: {name}: {why}", file=sys.stderr)
            bar.total = int(bar.n / (i + 1) * len(names))        # an estimate, from the mean size so far
    return missing


def fetch(cfg, name, bar):
    """Fetch one file into --out."""
    url, part = cfg.url + name, cfg.out / f"{name}.part"
    digest = stated_md5(name, get(cfg, url + ".md5"))
    if (cfg.out / name).is_file():                # from another program, or this one was stopped before add_sum
        os.replace(cfg.out / name, part)
    for _ in range(CHECKSUM_TRIES):
        patiently(name, lambda: transfer(url, part, bar), lambda: size_of(part))
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found == digest:
            os.replace(part, cfg.out / name)
            return add_sum(cfg.out, name, digest)
        part.unlink()
        tqdm.write(f"{name}: MD5 {found} instead of {digest}; fetching it again", file=sys.stderr)
    raise Missing(f"wrong MD5 {CHECKSUM_TRIES} times")


def transfer(url, part, bar):
    """Append the missing bytes to `part`."""
    start = size_of(part)
    try:
        response = request(url, {"Range": f"bytes={start}-"} if start else {})
    except HTTPError as error:
        if error.code == 416:                                   # there are no bytes after `start`; the MD5 decides
            return
        raise
    # A server without Range sends the whole file with 200. If it sends another part, the MD5 will be wrong.
    with disk(part):
        file = open(part, "ab" if response.status == 206 else "wb", buffering=0)
    with response, file:
        received = 0
        while block := response.read(BLOCK):
            with disk(part):
                received += file.write(block)
            bar.update(len(block))
    # TRAP: read(n) also returns b"" after a lost connection
    promised = response.headers.get("Content-Length", "")
    if promised.isdecimal() and received < int(promised):
        raise ConnectionError(f"the connection broke off after {received:,} of {int(promised):,} bytes")


@contextmanager
def disk(part):
    """A full disk must end the program. Network errors, which are also OSErrors, must not."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{part}: cannot be written ({error.strerror}); then run the same command again") from error


def request(url, headers):
    return urlopen(Request(url, headers={"User-Agent": USER_AGENT} | headers), timeout=TIMEOUT)


def get(cfg, url):
    """The bytes of a small page."""
    return patiently(url.removeprefix(cfg.url) or url, lambda: request(url, {}).read())


# ---- Failures ----


def patiently(name, attempt, progress=lambda: 0):
    """The result of attempt(). After a failure that may be temporary, wait and try again.

    Attempts that increase progress() (in bytes) do not count against RETRIES. Raises Missing when it gives up.
    """
    failures, furthest = 0, progress()
    while True:
        try:
            return attempt()
        except (OSError, HTTPException) as error:
            now = progress()
            failures, furthest = (1, now) if now > furthest else (failures + 1, furthest)
            if failures > RETRIES or not is_temporary(error):
                raise Missing(describe(error)) from error
            seconds = retry_after(error, default=min(WAIT * 2 ** (failures - 1), LONGEST_WAIT))
            tqdm.write(f"{name}: {describe(error)}; trying again in {seconds:.0f} s", file=sys.stderr)
            time.sleep(seconds)


def is_temporary(error):
    """True for 408, 429 (too many requests), 5xx and lost connections; False for certificates that are not trusted."""
    if isinstance(error, HTTPError):
        return error.code in (408, 429) or error.code >= 500
    return not isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)


def retry_after(error, default):
    """The seconds of a Retry-After header, which may be a number or a date; `default` without one."""
    stated = error.headers.get("Retry-After") if isinstance(error, HTTPError) else None
    try:
        number = re.fullmatch(r"\s*([0-9]+)\s*", stated or "")
        seconds = float(number[1]) if number else (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return default
    return min(max(0.0, seconds), LONGEST_ASKED)


def describe(error):
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


# ---- Checksums and sizes ----


def stated_md5(name, page):
    """The checksum in `MD5(pubmed26n0001.xml.gz)= 5d41...`."""
    match = re.fullmatch(rf"\s*MD5\s*\(\s*(?:\S*/)?{re.escape(name)}\s*\)\s*=\s*([0-9a-fA-F]{{32}})\s*",
                         page.decode("ascii", "replace"))
    if not match:
        raise Missing(f"{name}.md5 holds no MD5 of it")
    return match[1].lower()


def size_of(path):
    return path.stat().st_size if path.is_file() else 0


def read_sums(out):
    path = out / "MD5SUMS"
    return dict(line.split("  ")[::-1] for line in path.read_text().splitlines()) if path.is_file() else {}


def add_sum(out, name, digest):
    sums = read_sums(out) | {name: digest}
    with written_whole(out / "MD5SUMS") as temporary:
        temporary.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
