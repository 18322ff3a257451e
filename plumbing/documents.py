"""Files of biomedical text to documents, one after the other, for every format.

    from plumbing.documents import documents
    for text in documents("pubmed26n0001.xml.gz"):     # in order; one document in memory, not the file
        ...     # a str, empty for a blank line or an article without abstract; or a Bad: what cannot be read, and why

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
import sys
import zlib
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import zstandard

from plumbing.common import UserError

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
    """The documents of a file, in order."""
    return map(parse, records(Path(path)))


def files_in(inputs):
    """(the files to read, in order; the number of other files in the folders)."""
    files, others = [], 0
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name files of text, or folders of them")
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file()]
            readable = [p for p in inside if is_readable(p)]
            others += len(inside) - len(readable)
            files += readable
        else:
            files.append(path)
    return list(dict.fromkeys(files)), others


def texts_in(inputs):
    """The documents of all files in turn. Prints which cannot be read; UserError if they are more than 1 %."""
    good = bad = 0
    for path in files_in(inputs)[0]:
        print(path)
        for text in documents(path):
            if isinstance(text, Bad):
                print(f"skipped {text.where}: {text.reason}", file=sys.stderr)
                bad += text.weight
            else:
                good += 1
                yield text
    if bad > 0.01 * (good + bad):
        raise UserError(f"{bad:,} of {good + bad:,} documents cannot be read; repair or omit the files named above")


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
    except (Unreadable, OSError, zlib.error, zstandard.ZstdError) as error:
        reason = str(error) if isinstance(error, Unreadable) else f"broken file ({error})"
        yield Bad(str(path), reason, weight=max(1, seen))        # as much again may be missing


def blocks(file, unpack):
    """The contents of an open file in pieces; `unpack` makes a decompressor, or is None."""
    if file.read(len(LFS_POINTER)) == LFS_POINTER:
        raise Unreadable("git-lfs pointer instead of the file (run `git lfs pull`)")
    file.seek(0)
    unpacker = unpack and unpack()
    while block := file.read(BLOCK):
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
    """(number, bytes) of each line. The parts of a long line are joined once, at its end."""
    number, parts = 0, []
    for block in pieces:
        first, *others = block.split(b"\n")
        parts.append(first)
        for raw in others:
            number += 1
            yield number, b"".join(parts)
            parts = [raw]
    if last := b"".join(parts):
        yield number + 1, last


def whole_file(pieces):
    yield 1, b"".join(pieces)


ARTICLE = re.compile(rb"<(?:PubmedArticle|PubmedBookArticle|article)[\s>]")
ARTICLE_END = re.compile(rb"</(?:PubmedArticle|PubmedBookArticle|article)>")
LONGEST_TAG = len("</PubmedBookArticle>")
ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"'](?!utf-?8|us-ascii)([^\"']*)", re.I)


def articles(pieces):
    """(line, bytes) of each article of an XML file, cut out before parsing so that a broken one spoils no other."""
    number, waiting, tail, sets, found = 1, [], b"", False, False
    for block in pieces:
        if not found and not waiting and (encoding := ENCODING.match(block)):
            raise Unreadable(f"XML in another encoding ({encoding[1].decode()}; convert it to UTF-8)")
        waiting.append(block)
        latest = tail + block                                    # an end tag may straddle blocks
        tail = latest[-LONGEST_TAG:]
        if not ARTICLE_END.search(latest):
            continue

        text, begin = b"".join(waiting), 0
        for end in ARTICLE_END.finditer(text):
            start = ARTICLE.search(text, begin, end.start())
            first = start.start() if start else begin
            number += text.count(b"\n", begin, first)
            yield number, text[first:end.end()]
            number += text.count(b"\n", first, end.end())
            sets = sets or (not found and b"<PubmedArticleSet" in text[:first])
            begin, found = end.end(), True
        waiting = [text[begin:]]
        tail = waiting[0][-LONGEST_TAG:]

    rest = b"".join(waiting)
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
    except RecursionError:
        return Bad(record.where, "nested too deeply")
    except UnicodeDecodeError as error:
        return Bad(record.where, f"not UTF-8 (byte {error.start})")
    except Unreadable as error:
        return Bad(record.where, str(error))


PMID = re.compile(rb'<PMID[^>]*>\s*(\d{1,12})\s*<|<article-id pub-id-type="pmid">\s*(\d{1,12})\s*<')


def pmid(record):
    """The PubMed identifier of an article in PubMed's XML or in JATS; None for any other record."""
    match = isinstance(record, Record) and record.kind == "xml" and PMID.search(record.raw)
    return int(match[1] or match[2]) if match else None


def from_text(raw):
    return raw.decode("utf-8-sig")


def from_json(raw):
    if not raw or raw.isspace():
        return ""
    text = from_text(raw)
    try:
        value = json.loads(text)
    except ValueError as error:                                  # also for a number of more than 4,300 digits
        raise Unreadable(f"not JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise Unreadable('no "text" (a line is an object with the document under this name)')
    if b"\\u" in raw and any("\ud800" <= c <= "\udfff" for c in value["text"]):
        raise Unreadable("half a surrogate pair (UTF-8 cannot represent it)")
    return value["text"]


# The namespace prefixes are declared at the head of the file, from which an article is cut out.
WRAPPED = b'<x xmlns:mml="http://www.w3.org/1998/Math/MathML" xmlns:xlink="http://www.w3.org/1999/xlink">%b</x>'
PARAGRAPHS = {"p", "sec", "title", "fig", "table-wrap", "media", "boxed-text", "statement", "list-item", "def",
              "speech", "disp-quote", "attrib", "verse-line", "disp-formula", "code", "preformat"}
LEFT_OUT = {"ref-list", "table", "table-wrap-foot", "fn", "supplementary-material",
            "tex-math", "glyph-data", "alt-text", "long-desc", "object-id", "permissions", "sec-meta", "index-term"}
LABELLED = {"fig", "table-wrap", "media", "boxed-text", "statement"}     # "Figure 1", to which the text refers

# Marks for `flat`, of characters that XML cannot contain.
EDGE = "\x1f"       # beside a formula, and a word in one: a space where a letter or digit touches another
RAISED = "\x1e"     # before a superscript: 10<sup>-3</sup> becomes 10^-3, Ca<sup>2+</sup> Ca2+


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
        label = part.get("Label", "").strip(": \n")
        text = flat(part, inline=True)
        is_labelled = label not in ("", "UNLABELLED")            # NLM's placeholder for a missing label
        parts += [f"{label}: {text}" if is_labelled else text] if text else []
    title = article.find(".//ArticleTitle")
    return "\n".join([flat(title, inline=True), *parts]).strip() if parts else ""


def from_jats(article):
    """Title, abstract, body and floating captions; a blank line before each section, which begins with its heading."""
    blocks = [flat(article.find("front//title-group/article-title"), inline=True)]
    for abstract in article.iterfind("front//abstract"):
        if not abstract.get("abstract-type"):                    # those with a type are teasers and graphics
            blocks.append(("" if abstract.find("title") is not None else "Abstract\n\n") + flat(abstract))
    blocks.append(flat(article.find("body")))
    blocks.append(flat(article.find("floats-group")))            # figures and tables that some publishers put here
    return "\n\n".join(filter(None, blocks)) if any(blocks[1:]) else ""


def flat(element, inline=False):
    """The text of an element without its markup; `inline` puts it on one line."""
    if element is None:
        return ""
    out = []
    collect(element, out, inline)
    text = "".join(out)
    if EDGE in text:
        text = re.sub(rf"(?<=[^\W_]){EDGE}+(?=[^\W_])", " ", text).replace(EDGE, "")
    if RAISED in text:
        text = re.sub(rf"(?<=\d){RAISED}+(?=[-+\u2212\u2013\d])", "^", text).replace(RAISED, "")
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def collect(element, out, inline, raised=False):
    """Append the texts within an element. Markup that carries meaning becomes characters here, and EDGE and RAISED.

    raised: the element is in a superscript, where a cross-reference is a citation mark and left out.
    """
    out.append(one_space(element.text))
    for child in element:
        tag = child.tag
        if tag == "math":
            out.append(EDGE + math(child) + EDGE)
        elif tag == "inline-formula":
            out.append(EDGE + flat(child, inline=True) + EDGE)
        elif tag == "sup":
            out.append(superscript(child))
        elif tag == "label" and element.tag in LABELLED:
            out.append(flat(child, inline=True) + " ")
        elif tag not in LEFT_OUT and tag != "label" and not is_citation_mark(child, raised):
            gap = "" if tag not in PARAGRAPHS else " " if inline else "\n\n" if tag == "sec" else "\n"
            out.append(gap)
            collect(child, out, inline or tag == "caption", raised)
            out.append(gap[:1] or (" " if tag in ("caption", "break") else ""))
        out.append(one_space(child.tail))


def one_space(text):
    return re.sub(r"[ \t\r\n]+", " ", text or "")


def is_citation_mark(element, raised):
    """<xref><sup>5</sup></xref>, or an <xref> in a superscript."""
    return element.tag == "xref" and (raised or element.get("ref-type") == "bibr" and element.find("sup") is not None)


def superscript(element):
    inner = []
    collect(element, inner, inline=True, raised=True)
    text = "".join(inner)
    if element.find(".//xref") is not None:
        text = text.strip(" ,;[]()\u2013-")                      # what separated the citation marks
    return RAISED + text if text else ""


JOINED = {"msup": "^", "mover": "^", "msub": "_", "munder": "_", "msubsup": "_^", "munderover": "_^", "mfrac": "/"}
INVISIBLE = dict.fromkeys(range(0x2061, 0x2065))                 # operators without a sign: x times y
FUNCTIONS = {"sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "log", "ln", "lim", "max", "min"}


def math(element):
    """MathML on one line: x_i^2, (a+b)/c, 2 log x."""
    if element.tag.startswith("annotation"):
        return ""
    parts = [part for part in map(math, element) if part.strip(EDGE)]
    if element.tag in JOINED and len(parts) > 1:
        parts = [part.strip(EDGE) for part in parts]
        parts = [part if len(part) == 1 or part.isalnum() else f"({part})" for part in parts]
        return "".join(a + b for a, b in zip(parts, JOINED[element.tag] + " ", strict=False)).strip()
    if element.tag == "mfenced":
        return element.get("open", "(") + element.get("separators", ",")[:1].join(parts) + element.get("close", ")")
    text = " ".join((element.text or "").translate(INVISIBLE).split()) + "".join(parts)
    if element.tag == "mtext" or text in FUNCTIONS:
        return EDGE + text + EDGE
    return f"sqrt({text})" if element.tag == "msqrt" else text


PARSE = {"json": from_json, "text": from_text, "xml": from_xml}
EMPTY = {"json": "empty document", "text": "empty document", "xml": "article without abstract"}
