"""Files of biomedical text to documents, one after the other, for every format.

    from plumbing.documents import Bad, documents
    for text in documents("pubmed26n0001.xml.gz"):     # in order; one document in memory, not the file
        if isinstance(text, Bad):
            print(text.where, text.reason)             # a line or article that cannot be read; the rest follows
        else:
            ...                                        # a str; empty for a blank line or an article without abstract

Teaches what goes wrong in real files: they end too early, have a broken line, or are not in the format of their name.
Reads .jsonl (one {"text": ...} per line, as in The Pile), .txt (one document), .xml of PubMed (title and abstract) and
.xml or .nxml of PMC (JATS: title, abstract, body); each plain, .gz or .zst.
Left out of XML: articles with only a title, reference lists and raised citation marks, footnotes, the cells of tables
(as running text they are numbers without their columns), formulas given as pictures or TeX. Kept: captions, MathML as
text, and the labels of an abstract's parts as `METHODS: ...`.

Not here: what the documents are used for (prepare/pubmed.py, tokenizer.py).
"""
import json
import re
import zlib
from codecs import BOM_UTF8
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import zstandard

BLOCK = 1 << 18      # bytes read at a time


class Unreadable(Exception):
    """A record or file that cannot be read; the reason is a kind with a detail in brackets."""


class Bad(NamedTuple):
    """Something that cannot be read."""
    where: str          # file:line
    reason: str
    weight: int = 1     # how many documents are missing, as far as known


class Record(NamedTuple):
    """The bytes of one document."""
    where: str          # file:line
    kind: str           # how to parse it: json, text or xml
    raw: bytes
    position: int       # in the file on disk, for the progress bar


def documents(path):
    """The documents of a file in order: each item is a text (str, perhaps empty) or a Bad."""
    return map(parse, records(Path(path)))


# ---- Files to raw records: cheap, so that one process can feed many that parse ----

FORM = re.compile(r".+\.(jsonl|txt|xml|nxml)(?:\.(gz|zst))?", re.I)
LFS_POINTER = b"version https://git-lfs"
UNPACK = {"gz": lambda: zlib.decompressobj(wbits=31),                                          # 31: with gzip's header
          "zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()}  # archives use --long


def is_readable(path):
    return FORM.fullmatch(path.name) is not None


def records(path):
    """The raw records of one file, then a Bad if the file could not be read to its end."""
    seen = 0
    try:
        form = FORM.fullmatch(path.name)
        if not form:
            raise Unreadable(f"unknown suffix ({path.name}; known are .jsonl .txt .xml .nxml, each plain, .gz or .zst)")
        kind, split = SPLIT[form[1].lower()]
        with open(path, "rb") as file:
            for line, raw in split(blocks(file, UNPACK.get((form[2] or "").lower()))):
                yield Record(f"{path}:{line}", kind, raw, file.tell())
                seen += 1
    except Unreadable as error:
        yield Bad(str(path), str(error), weight=max(1, seen))    # as much again may be missing
    except (OSError, zlib.error, zstandard.ZstdError) as error:
        yield Bad(str(path), f"broken file ({error})", weight=max(1, seen))


def blocks(file, unpack):
    """The contents of an open file in pieces; `unpack` makes a decompressor, or is None."""
    unpacker = unpack and unpack()
    first = True
    while block := file.read(BLOCK):
        if first and block.startswith(LFS_POINTER):
            raise Unreadable("git-lfs pointer instead of the file (run `git lfs pull`)")
        first = False
        while block and unpacker:
            if unpacker.eof:                                     # a file may be several streams, end to end
                unpacker = unpack()
            yield unpacker.decompress(block)
            block = unpacker.unused_data.lstrip(b"\0") if unpacker.eof else b""
        if not unpacker:
            yield block
    if unpacker and not unpacker.eof:
        raise Unreadable("truncated file (download it again)")


def lines(pieces):
    number, rest = 0, b""
    for block in pieces:
        *whole, rest = (rest + block).split(b"\n")
        for raw in whole:
            number += 1
            yield number, raw
    if rest:
        yield number + 1, rest


def whole_file(pieces):
    yield 1, b"".join(pieces)


ARTICLE = re.compile(rb"<(?:PubmedArticle|PubmedBookArticle|article)[\s>]")
ARTICLE_END = re.compile(rb"</(?:PubmedArticle|PubmedBookArticle|article)>")
ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"'](?!utf-?8|us-ascii)([^\"']*)", re.I)


def articles(pieces):
    """(line, bytes) of each article of an XML file, cut out before parsing so that a broken one spoils no other."""
    number, rest, sets, found = 1, b"", 0, False
    for block in pieces:
        scanned = max(0, len(rest) - 30)                         # an end tag may straddle two blocks
        if not found and (encoding := ENCODING.match(block)):
            raise Unreadable(f"XML in another encoding ({encoding[1].decode()}; convert it to UTF-8)")
        begin, rest = 0, rest + block
        for end in ARTICLE_END.finditer(rest, scanned):
            start = ARTICLE.search(rest, begin, end.start())
            first = start.start() if start else begin
            number += rest.count(b"\n", begin, first)
            yield number, rest[first:end.end()]
            number += rest.count(b"\n", first, end.end())
            sets += not found and b"<PubmedArticleSet" in rest[:first]
            begin, found = end.end(), True
        rest = rest[begin:]
    if ARTICLE.search(rest) or (sets and b"</PubmedArticleSet>" not in rest):
        raise Unreadable("truncated file (it ends within an article or a set of articles)")
    if not found:
        raise Unreadable("no article (it contains neither <PubmedArticle> nor <article>)")


SPLIT = {"jsonl": ("json", lines), "txt": ("text", whole_file), "xml": ("xml", articles), "nxml": ("xml", articles)}


# ---- Raw records to text ----


def parse(record):
    if isinstance(record, Bad):
        return record
    try:
        return PARSE[record.kind](record.raw)
    except UnicodeDecodeError as error:
        return Bad(record.where, f"not UTF-8 (byte {error.start})")
    except Unreadable as error:
        return Bad(record.where, str(error))


PMID = re.compile(rb'<PMID[^>]*>\s*(\d+)\s*<|<article-id pub-id-type="pmid">\s*(\d+)\s*<')    # PubMed's, JATS's


def pmid(record):
    """The PubMed identifier of an article in XML; None for other records and for an article without."""
    match = isinstance(record, Record) and record.kind == "xml" and PMID.search(record.raw)
    return int(match[1] or match[2]) if match else None


def from_text(raw):
    return raw.decode("utf-8-sig")


def from_json(raw):
    if not raw or raw.isspace():
        return ""
    try:
        value = json.loads(raw.removeprefix(BOM_UTF8).decode())
    except (json.JSONDecodeError, RecursionError) as error:
        raise Unreadable(f"not JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise Unreadable('no "text" (a line is an object with the document under this name)')
    if b"\\u" in raw and any("\ud800" <= c <= "\udfff" for c in value["text"]):
        raise Unreadable("half a surrogate pair (UTF-8 cannot represent it)")
    return value["text"]


# The namespace prefixes are declared at the head of the file, from which an article is cut out.
WRAPPED = b'<x xmlns:mml="http://www.w3.org/1998/Math/MathML" xmlns:xlink="http://www.w3.org/1999/xlink">%b</x>'
PARAGRAPHS = {"p", "sec", "title", "fig", "table-wrap", "list-item", "disp-quote", "disp-formula", "boxed-text", "def"}
LEFT_OUT = {"ref-list", "table", "table-wrap-foot", "tex-math", "supplementary-material", "object-id", "fn"}


def from_xml(raw):
    try:
        article, = ElementTree.fromstring(WRAPPED % raw)
    except (ElementTree.ParseError, ValueError) as error:
        raise Unreadable(f"broken XML ({error})") from error
    for element in article.iter():
        element.tag = element.tag.rpartition("}")[2]             # names without their namespace
    return from_jats(article) if article.tag == "article" else from_pubmed(article)


def from_pubmed(article):
    """The title, then each part of the abstract on a line after its label: `METHODS: ...`."""
    parts = []
    for part in article.iterfind(".//Abstract/AbstractText"):
        label = part.get("Label", "UNLABELLED").rstrip(": ")     # NLM's placeholder for a missing label
        text = flat(part, inline=True)
        parts += [text if label == "UNLABELLED" else f"{label}: {text}"] if text else []
    title = article.find(".//ArticleTitle")
    return "\n".join([flat(title, inline=True), *parts]).strip() if parts else ""


def from_jats(article):
    """Title, abstract and body; a blank line before each section, which begins with its heading."""
    blocks = [flat(article.find("front//title-group/article-title"), inline=True)]
    for abstract in article.iterfind("front//abstract"):
        if not abstract.get("abstract-type"):                    # those with a type are teasers and graphics
            blocks.append(("" if abstract.find("title") is not None else "Abstract\n\n") + flat(abstract))
    blocks.append(flat(article.find("body")))
    return "\n\n".join(filter(None, blocks)) if any(blocks[1:]) else ""


def flat(element, inline=False):
    """The text of an element without its markup; `inline` puts it on one line."""
    if element is None:
        return ""
    out = []
    collect(element, out, inline)
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", "".join(out)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def collect(element, out, inline):
    """Append the texts within an element. Markup that carries meaning becomes characters here."""
    out.append(re.sub(r"[ \t\r\n]+", " ", element.text or ""))
    for child in element:
        tag = child.tag
        if tag == "math":
            out.append(math(child))
        elif tag == "sup" and child.find(".//xref") is None:
            ends_in_digit = "".join(out[-2:])[-1:].isdigit()     # 10<sup>-3</sup> becomes 10^-3, not 10-3
            out.append("^" * (ends_in_digit and re.match(r"[-+\u2212\u2013\d]", child.text or "") is not None))
            collect(child, out, inline)
        elif tag == "label" and element.tag in ("fig", "table-wrap"):
            out.append(flat(child, inline=True) + " ")           # "Figure 1", which the text refers to
        elif tag not in LEFT_OUT and tag not in ("sup", "label") and not is_raised_citation(child):
            gap = "" if tag not in PARAGRAPHS else " " if inline else "\n\n" if tag == "sec" else "\n"
            out.append(gap)
            collect(child, out, inline or tag == "caption")
            out.append(gap[:1] or (" " if tag in ("caption", "break") else ""))
        out.append(re.sub(r"[ \t\r\n]+", " ", child.tail or ""))


def is_raised_citation(element):
    return element.tag == "xref" and element.get("ref-type") == "bibr" and element.find("sup") is not None


JOINED = {"msup": "^", "mover": "^", "msub": "_", "munder": "_", "msubsup": "_^", "munderover": "_^", "mfrac": "/"}


def math(element):
    """MathML on one line: x_i^2, (a+b)/c."""
    if element.tag.startswith("annotation"):
        return ""
    parts = [part for part in map(math, element) if part]
    if element.tag in JOINED and len(parts) > 1:
        parts = [part if len(part) == 1 or part.isalnum() else f"({part})" for part in parts]
        return "".join(a + b for a, b in zip(parts, JOINED[element.tag] + " ", strict=False)).strip()
    text = " ".join((element.text or "").split()) + "".join(parts)
    return f"sqrt({text})" if element.tag == "msqrt" else text


PARSE = {"json": from_json, "text": from_text, "xml": from_xml}
EMPTY = {"json": "empty document", "text": "empty document", "xml": "article without abstract"}
