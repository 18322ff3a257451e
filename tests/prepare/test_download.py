"""prepare/pubmed.py download: against a server on this machine that breaks off, refuses and sends damaged files."""
import gzip
import hashlib
import subprocess
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import run_script

from plumbing.common import UserError
from plumbing.documents import is_readable
from prepare import download as module
from prepare.download import Download, download

NAMES = [f"pubmed26n{i:04}.xml.gz" for i in (1, 2, 3)]
FILES = {name: gzip.compress(name.encode() * 50, mtime=0) + bytes(300_000) for name in NAMES}


class Handler(BaseHTTPRequestHandler):
    """Serves FILES, their .md5 and a page that lists them; `server.trouble` maps a path to what will go wrong next."""

    def do_GET(self):
        name, server = self.path.rsplit("/", 1)[-1], self.server
        server.asked.append((name, self.headers["Range"]))
        server.agents.add(self.headers["User-Agent"])
        trouble = server.trouble[name].pop(0) if server.trouble.get(name) else ""
        if trouble.startswith("status"):
            _, status, when = trouble.split(maxsplit=2)
            return self.answer(int(status), b"", {"Retry-After": when})
        if trouble == "vanish":
            return                                       # without a word
        body, start = self.body(name), 0
        if body is None:
            return self.answer(404, b"")
        if self.headers["Range"] and trouble != "no ranges":
            start = int(self.headers["Range"][len("bytes="):-1])
            if start >= len(body):
                return self.answer(416, b"")
        if trouble == "lie":
            body = body[:-1] + b"x"
        headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.answer(206 if start else 200, body[start:], headers, cut=100_000 if trouble == "cut" else None)

    def body(self, name):
        if self.path.endswith("/empty/"):
            return b"<a href='readme.txt'>"
        if self.path.endswith("/baseline/"):
            return "".join(f'<a href="{n}">{n}</a> 1M\n<a href="{n}.md5">' for n in NAMES).encode()
        if name.endswith(".md5"):
            name = name.removesuffix(".md5")
            return f"MD5({name})= {hashlib.md5(FILES[name]).hexdigest()}\n".encode()
        return FILES.get(name)

    def answer(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.trouble, server.asked, server.agents = {}, [], set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that it would have waited."""
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


@pytest.fixture
def cfg(server, tmp_path, waits, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "TIMEOUT", 5)
    return Download(out=tmp_path / "baseline", url=f"http://127.0.0.1:{server.server_port}/pubmed/baseline")


def assert_whole(cfg, names=NAMES):
    assert {path.name for path in cfg.out.iterdir()} == {*names, "MD5SUMS"}
    assert all((cfg.out / name).read_bytes() == FILES[name] for name in names)


def test_the_whole_baseline_one_file_after_the_other(cfg, server, waits):
    assert download(cfg) == NAMES
    assert_whole(cfg)
    assert [name for name, _ in server.asked] == ["", *(x for name in NAMES for x in (name + ".md5", name))]
    assert waits == [1.0, 1.0] and all("nanoBioMedLM" in agent for agent in server.agents)
    assert [path.name for path in sorted(cfg.out.iterdir()) if is_readable(path)] == NAMES     # for --inputs
    assert subprocess.run(["md5sum", "-c", "MD5SUMS"], cwd=cfg.out, capture_output=True).returncode == 0


def test_what_is_there_and_verified_is_not_fetched_again(cfg, server, capsys):
    download(replace(cfg, files=2))
    assert_whole(cfg, NAMES[:2])
    server.asked.clear()
    download(cfg)
    assert [name for name, _ in server.asked] == ["", NAMES[2] + ".md5", NAMES[2]]
    assert "2 of 3 files are already there" in capsys.readouterr().out
    assert_whole(cfg)


def test_a_part_by_number(cfg):
    assert download(replace(cfg, first=2, files=1)) == NAMES[1:2]
    with pytest.raises(UserError, match="--first 4: the baseline's files are numbered 1 to 3"):
        download(replace(cfg, first=4))


def test_a_cut_connection_goes_on_where_it_broke_off(cfg, server, waits):
    server.trouble = {NAMES[0]: ["cut", "vanish", "cut"]}
    download(replace(cfg, files=1))
    assert_whole(cfg, NAMES[:1])
    assert [at for name, at in server.asked if name == NAMES[0]] == [
        None, "bytes=100000-", "bytes=100000-", "bytes=200000-"]
    assert waits == [2.0, 4.0, 2.0]                      # what made progress begins to count anew


def test_a_stopped_download_goes_on_where_it_stood(cfg, server):
    cfg.out.mkdir()
    (cfg.out / f"{NAMES[0]}.part").write_bytes(FILES[NAMES[0]][:1234])
    (cfg.out / f"{NAMES[1]}.part").write_bytes(FILES[NAMES[1]])             # all there, but not yet verified
    (cfg.out / NAMES[2]).write_bytes(FILES[NAMES[2]][:500])                 # by another program, and not whole
    server.trouble = {NAMES[2]: ["no ranges"]}
    download(cfg)
    assert_whole(cfg)
    assert [at for name, at in server.asked if name in NAMES] == [
        "bytes=1234-", f"bytes={len(FILES[NAMES[1]])}-", "bytes=500-"]


def test_a_damaged_part_is_fetched_anew(cfg, server, capsys):
    cfg.out.mkdir()
    (cfg.out / f"{NAMES[0]}.part").write_bytes(b"not of this file")
    download(replace(cfg, files=1))
    assert_whole(cfg, NAMES[:1])
    assert "fetching it again" in capsys.readouterr().err


def test_a_wrong_checksum_is_named_and_not_kept_and_the_rest_goes_on(cfg, server):
    server.trouble = {NAMES[1]: ["lie"] * 3}
    with pytest.raises(UserError, match=rf"1 of 3 files are missing: {NAMES[1]} \(wrong MD5 3 times\)"):
        download(cfg)
    assert_whole(cfg, [NAMES[0], NAMES[2]])
    download(cfg)
    assert_whole(cfg)


def test_a_busy_server_is_asked_again_when_it_says_and_later_each_time(cfg, server, waits):
    server.trouble = {NAMES[0]: ["status 503 7", "status 429 \u00b2", "status 500 99999999999"], "": ["status 502 x"],
                      NAMES[0] + ".md5": ["status 503 Thu, 01 Jan 1970 00:00:00 GMT"]}
    download(replace(cfg, files=1))
    assert_whole(cfg, NAMES[:1])
    assert waits == [2.0, 0.0, 7.0, 4.0, 3600.0]


def test_what_does_not_come_is_given_up_and_named(cfg, server, monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 2)
    server.trouble = {NAMES[0]: ["status 503 x"] * 3, NAMES[1] + ".md5": ["status 403 x"]}
    with pytest.raises(UserError, match=f"2 of 3 .*{NAMES[0]} .the server answers 503 .*{NAMES[1]} .*403") as error:
        download(cfg)
    assert "same command again" in str(error.value)
    assert Counter(name for name, _ in server.asked)[NAMES[0]] == 3
    assert_whole(cfg, NAMES[2:])


def test_another_years_files_do_not_mix(cfg, server):
    cfg.out.mkdir()
    (cfg.out / "pubmed25n0001.xml.gz").touch()
    with pytest.raises(UserError, match="holds files of pubmed25, but the server has pubmed26"):
        download(cfg)


def test_a_disk_that_cannot_be_written_is_no_lost_connection(cfg, server, waits):
    (cfg.out / f"{NAMES[0]}.part").mkdir(parents=True)
    with pytest.raises(UserError, match="part: cannot be written"):
        download(cfg)
    assert waits == []


def test_a_file_in_the_place_of_out_is_named(cfg, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: --out must be a folder"):
        download(replace(cfg, out=tmp_path / "file"))


@pytest.mark.parametrize("url, words", [
    ("ftp://x/", "begins with https"), ("http://127.0.0.1:{port}/nowhere", "404"),
    ("http://127.0.0.1:{port}/empty/", "has no links to pubmed")])
def test_a_wrong_address_is_named(cfg, server, url, words):
    with pytest.raises(UserError, match=words):
        download(replace(cfg, url=url.format(port=server.server_port)))


def test_the_command_ends_with_2_and_keeps_what_it_fetched(cfg, server):
    server.trouble = {NAMES[1] + ".md5": ["status 403 x"]}
    finished = run_script("prepare/pubmed.py", "download", "--out", cfg.out, "--url", cfg.url, "--files", "2")
    assert finished.returncode == 2 and f"1 of 2 files are missing: {NAMES[1]}" in finished.stderr
    assert_whole(cfg, NAMES[:1])
