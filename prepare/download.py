"""`prepare/pubmed.py download`: PubMed's annual baseline, fetched whole or not at all, and politely.

    python prepare/pubmed.py download --out data/baseline                 # all of it: over a thousand files
    python prepare/pubmed.py download --out data/baseline --files 3       # or a part, to try things out

Teaches what it takes to fetch many gigabytes over a line that fails: go on where it broke off (Range), believe nothing
that has no checksum, and ask a public server for one thing at a time, less often when it says that it is busy.
A file has its name in --out only after its MD5 was right, and then stands in MD5SUMS too (`md5sum -c MD5SUMS`). The
same command again fetches what is missing.
You should see a bar of bytes, a line for every failure and what is done about it, and in the end how many files stand
in --out; exit code 2 and their names if some do not.
Not here: reading the files (prepare/documents.py). Who may use the abstracts: see prepare/pubmed.py.
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
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from tqdm import tqdm

from plumbing.common import UserError, written_whole

USER_AGENT = "nanoBioMedLM (prepare/pubmed.py download; one connection)"
NAME = re.compile(r'href="(?:[^"]*/)?(pubmed(\d\d)n(\d{4,})\.xml\.gz)"')
BLOCK, LONGEST_WAIT, CHECKSUM_TRIES = 1 << 18, 300.0, 3


@dataclass(frozen=True)
class Download:
    """Fetch PubMed's annual baseline."""
    out: Path = Path("data/baseline")   # what stands there, verified, is not fetched again
    url: str = "https://ftp.ncbi.nlm.nih.gov/pubmed/baseline/"    # a page that links to pubmedYYnNNNN.xml.gz
    first: int = 1                      # number of the first file
    last: int = 0                       # and of the last; 0 is the last there is
    files: int = 0                      # at most so many; 0 is no limit
    pause: float = 1.0                  # seconds between files
    wait: float = 2.0                   # seconds after a failure, doubled after each further one
    retries: int = 8                    # failures in a row that brought nothing, before a file is given up
    timeout: float = 60.0               # seconds without a byte that count as a lost connection


class Missing(Exception):
    """A file that cannot be had now; the message says why."""


def download(cfg):
    """Fetch what is missing; returns the names that stand in --out. UserError if some of those asked for do not."""
    if not cfg.url.startswith(("http://", "https://")):
        raise UserError(f"--url {cfg.url}: not an address that begins with https:// or http://")
    cfg = replace(cfg, url=cfg.url.rstrip("/") + "/")
    names, missing = choose(cfg, listing(cfg)), {}
    cfg.out.mkdir(parents=True, exist_ok=True)
    verified = read_sums(cfg.out)
    wanted = [name for name in names if not (name in verified and (cfg.out / name).is_file())]
    if len(wanted) < len(names):
        print(f"{len(names) - len(wanted):,} of {len(names):,} files are there and verified")
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        for i, name in enumerate(wanted):
            if i:
                time.sleep(cfg.pause)
            bar.set_description(f"{name} ({i + 1:,} of {len(wanted):,})")
            try:
                fetch(cfg, name, bar)
            except Missing as why:
                missing[name] = why
                tqdm.write(f"given up: {name}: {why}", file=sys.stderr)
            bar.total = int(bar.n / (i + 1) * len(wanted))       # by the mean so far, for the time left
    print(f"{cfg.out}: {len(names) - len(missing):,} of {len(names):,} files, each with the MD5 that the server states")
    if missing:
        raise UserError(f"{len(missing):,} of {len(names):,} files are missing: "
                        + ", ".join(f"{name} ({why})" for name, why in missing.items())
                        + "; the same command again tries them")
    return names


def listing(cfg):
    """The baseline's files in order, as (name, year, number)."""
    try:
        page = get(cfg, cfg.url).decode("utf-8", "replace")
    except Missing as why:
        raise UserError(f"{cfg.url}: {why}; look at the connection, or at --url") from why
    found = sorted({(name, year, int(number)) for name, year, number in NAME.findall(page)}, key=lambda item: item[1:])
    if not found:
        raise UserError(f"{cfg.url}: links to no pubmedYYnNNNN.xml.gz; is it the folder of the baseline?")
    return found


def choose(cfg, found):
    last = cfg.last or found[-1][2]
    names = [name for name, _, number in found if cfg.first <= number <= last]
    names = names[:cfg.files] if cfg.files else names
    if not names:
        raise UserError(f"--first {cfg.first} --last {cfg.last}: the baseline has {found[0][2]} to {found[-1][2]}")
    years = {path.name[:8] for path in cfg.out.glob("pubmed[0-9][0-9]n*.xml.gz")}
    if other := sorted(years - {name[:8] for name in names}):
        raise UserError(f"{cfg.out}: holds files of {other[0]}, now it is {names[0][:8]}; every year's baseline has "
                        "all articles anew, so choose another --out")
    return names


def fetch(cfg, name, bar):
    """One file into --out, under its name only if its MD5 is right."""
    url, part = urljoin(cfg.url, name), cfg.out / f"{name}.part"
    digest = stated_md5(name, get(cfg, url + ".md5"))
    if (cfg.out / name).is_file():                # by another program, or by this one just before it was stopped
        os.replace(cfg.out / name, part)
    for _ in range(CHECKSUM_TRIES):
        patiently(cfg, name, lambda: transfer(cfg, url, part, bar), lambda: size_of(part))
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found == digest:
            os.replace(part, cfg.out / name)
            return add_sum(cfg.out, name, digest)
        part.unlink()
        tqdm.write(f"{name}: MD5 {found}, not {digest}; fetching it anew", file=sys.stderr)
    raise Missing(f"wrong MD5 {CHECKSUM_TRIES} times")


def transfer(cfg, url, part, bar):
    """Append to `part` what it lacks."""
    start = size_of(part)
    try:
        with request(cfg, url, **({"Range": f"bytes={start}-"} if start else {})) as response:
            # A server that does not know Range sends all of it. One that sends another part is found out by the MD5.
            received = copy(response, part, "ab" if response.status == 206 else "wb", bar)
            promised = response.headers.get("Content-Length")
            if promised and received < int(promised):           # TRAP: read(n) takes an early end for the end
                raise ConnectionError(f"the connection broke off after {received:,} of {int(promised):,} bytes")
    except HTTPError as error:
        if error.code != 416:                                   # 416: there is nothing after `start`; the MD5 decides
            raise


def copy(response, part, mode, bar):
    received = 0
    with disk(part), open(part, mode) as file:
        while block := read(response):
            file.write(block)
            received += len(block)
            bar.update(len(block))
    return received


def read(response):
    """A block, empty at the end. What the network does wrong is a ConnectionError, to be told from a full disk."""
    try:
        return response.read(BLOCK)
    except (OSError, HTTPException) as error:
        raise ConnectionError(describe(error)) from error


@contextmanager
def disk(part):
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise UserError(f"{part}: cannot be written ({error.strerror}); after that the same command goes on") from error


def request(cfg, url, **headers):
    return urlopen(Request(url, headers={"User-Agent": USER_AGENT} | headers), timeout=cfg.timeout)


def get(cfg, url):
    """The bytes of a small page."""
    def attempt():
        with request(cfg, url) as response:
            return response.read()
    return patiently(cfg, url.removeprefix(cfg.url) or url, attempt)


def patiently(cfg, name, attempt, reached=lambda: 0):
    """attempt()'s result. After a failure that may pass, wait and try again; what brings it further than it was
    (`reached`, in bytes) does not count against --retries. Raises Missing where waiting is no use, or was not."""
    failures, furthest = 0, reached()
    while True:
        try:
            return attempt()
        except (OSError, HTTPException) as error:
            now = reached()
            failures, furthest = (1, now) if now > furthest else (failures + 1, furthest)
            if failures > cfg.retries or not may_pass(error):
                raise Missing(describe(error)) from error
            seconds = asked_to_wait(error)
            seconds = min(cfg.wait * 2 ** (failures - 1), LONGEST_WAIT) if seconds is None else seconds
            tqdm.write(f"{name}: {describe(error)}; again in {seconds:.0f} s", file=sys.stderr)
            time.sleep(seconds)


def may_pass(error):
    """429 (too many requests), 408 and 5xx pass; so do lost connections, but not certificates that are not trusted."""
    if isinstance(error, HTTPError):
        return error.code in (408, 429) or error.code >= 500
    return not isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)


def asked_to_wait(error):
    """The seconds of a Retry-After header, which is a number or a date; None without one."""
    stated = error.headers.get("Retry-After") if isinstance(error, HTTPError) else None
    if not stated:
        return None
    if stated.strip().isdigit():
        return float(stated)
    try:
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def describe(error):
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


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
