"""prepare/: every format becomes the same documents and questions, and damaged files are named and counted."""
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard
from launched import launched

from data import open_shard
from plumbing.common import UserError, parse_args
from plumbing.documents import Bad, documents, lines
from prepare import pubmed, qa
from tokenizer import Tokenizer

WORDS = "aspirin inhibits platelet cyclooxygenase; 10 mg/kg of naïve β-blockers didn't change\n\n the QT .".split(" ")


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    """(folder, Tokenizer) of a vocabulary learned from the words above."""
    folder = tmp_path_factory.mktemp("tok")
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 3, vocab_size=300)
    tokenizer.save(folder)
    return folder, tokenizer


def texts(n, seed=0):
    rng = random.Random(seed)
    return [f"Study {i}: " + " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for i in range(n)]


def write_jsonl(path, docs):
    data = "".join(json.dumps({"text": t, "meta": {"pile_set_name": "PubMed Abstracts"}}) + "\n" for t in docs).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def prepare(tok, inputs, out, **flags):
    return pubmed.main(pubmed.Prepare(tuple(map(Path, inputs)), tok[0], Path(out), **{"processes": 1, **flags}))


def read_back(tok, out, split):
    """The documents of one split, decoded from its shards."""
    ids = np.concatenate([open_shard(p) for p in sorted(Path(out).glob(f"{split}_*.bin"))] or [np.zeros(0, np.uint16)])
    ends = np.flatnonzero(ids == tok[1].eos_id)
    assert len(ids) == 0 or ends[-1] == len(ids) - 1, "the last document also ends in <|endoftext|>"
    return [tok[1].decode(ids[a:b]) for a, b in zip([0, *ends + 1], ends, strict=False)]


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != "meta.json"}


def stops(message, function, *args, **kwargs):
    with pytest.raises(UserError, match=message) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value), "one line"


# ---- shards ----

def test_shards_decode_back_to_the_documents_and_meta_counts_them(tok, tmp_path):
    docs = texts(400)
    meta = prepare(tok, [write_jsonl(tmp_path / "a.jsonl.gz", docs)], tmp_path / "out", val_fraction=0.1)
    train, val = (read_back(tok, tmp_path / "out", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(docs) and train == [d for d in docs if d in set(train)], "in order"
    assert 10 < len(val) < 80
    for split, held in (("train", train), ("val", val)):
        tokens = sum(len(open_shard(p)) for p in (tmp_path / "out").glob(f"{split}_*.bin"))
        assert meta[split] == {"documents": len(held), "tokens": tokens, "bytes": sum(len(d.encode()) for d in held)}
    assert json.loads((tmp_path / "out/meta.json").read_text()) == meta
    assert (meta["vocab_size"], meta["eos_id"]) == (300, 299) and len(Tokenizer.load(tmp_path / "out")) == 300


def test_the_result_does_not_depend_on_the_number_of_processes(tok, tmp_path, monkeypatch):
    monkeypatch.setattr(pubmed, "CHUNK", 5000)       # many tasks, so that they could come back in another order
    inputs = [write_jsonl(tmp_path / "a.jsonl.gz", texts(200)), write_jsonl(tmp_path / "b.jsonl.zst", texts(200, 1))]
    for processes in (1, 3):
        prepare(tok, inputs, tmp_path / str(processes), processes=processes, val_fraction=0.1, shard_tokens=3000)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    sizes = [len(open_shard(p)) for p in sorted((tmp_path / "1").glob("train_*.bin"))]
    assert len(sizes) > 3 and set(sizes[:-1]) == {3000} and 0 < sizes[-1] <= 3000


def test_a_document_lands_on_the_same_side_wherever_it_stands_and_so_do_its_duplicates(tok, tmp_path):
    docs = texts(300)
    prepare(tok, [write_jsonl(tmp_path / "a.jsonl", docs)], tmp_path / "a", val_fraction=0.2)
    prepare(tok, [write_jsonl(tmp_path / "b.jsonl", (docs + docs)[::-1])], tmp_path / "b", val_fraction=0.2)
    a, b = read_back(tok, tmp_path / "a", "val"), read_back(tok, tmp_path / "b", "val")
    assert set(a) == set(b) and len(b) == 2 * len(a) > 0
    assert not set(b) & set(read_back(tok, tmp_path / "b", "train"))


def test_the_fast_encoder_gives_the_tokenizers_ids(tok):
    encode, rng = pubmed.Encoder(tok[1]), random.Random(0)
    blanks = " \t\n\x0b\r\x1c\x1f\x85\xa0\u1680\u2009\u2028\u200b\u3000\ufeff"
    parts = [*"aZ9é中-'\U0001f600\u0301", "'ll", "'S", "  ", "\n\n", "<|endoftext|>", " the", "platelet"]
    for _ in range(3000):
        text = "".join(rng.choice(blanks if rng.random() < 0.5 else parts) for _ in range(rng.randint(0, 15)))
        assert [int(i) for piece in encode(text) for i in piece] == tok[1].encode(text).tolist(), repr(text)


def test_a_megabyte_of_blanks_on_which_tiktoken_panics_is_a_document_like_others(tok, tmp_path):
    docs = [" " * 1_000_000 + "x", "\n" * 1_000_000 + "x", "aspirin"]
    prepare(tok, [write_jsonl(tmp_path / "a.jsonl", docs)], tmp_path / "out", val_fraction=0)
    assert read_back(tok, tmp_path / "out", "train") == docs


def test_endoftext_in_a_document_is_plain_text(tok, tmp_path):
    prepare(tok, [write_jsonl(tmp_path / "a.jsonl", ["a <|endoftext|> b"])], tmp_path / "out", val_fraction=0)
    assert read_back(tok, tmp_path / "out", "train") == ["a <|endoftext|> b"]


# ---- what cannot be read ----

def test_bad_lines_are_counted_and_named_and_the_rest_goes_on(tok, tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", texts(700))
    bad = [b'{"text": "cut', b'{"title": ""}', b'{"text": 5}', b'{"text": "\xff"}', b'{"text": "\\ud835"}',
           b"[" * 99999, b'{"text": "x", "n": %d' % 1 + b"0" * 5000 + b"}"]
    path.write_bytes(path.read_bytes() + b"\n".join(bad) + b'\n\n{"text": " "}\n{"text": "the last"}')
    meta = prepare(tok, [path], tmp_path / "out")
    assert meta["train"]["documents"] + meta["val"]["documents"] == 701
    assert meta["skipped"] == {"not JSON": 2, 'no "text"': 2, "not UTF-8": 1, "half a surrogate pair": 1,
                               "nested too deeply": 1, "empty document": 2}
    said = capsys.readouterr().err
    assert all(f"{path}:{line}: " in said for line in range(701, 708))


def test_a_long_line_is_joined_once_and_not_with_each_block():
    class Block(bytes):
        def __radd__(self, other):
            raise AssertionError("copies the line once per block")

    assert list(lines(map(Block, [b"a\nb", *[b"c"] * 9, b"\n\nd", b"e"]))) == [
        (1, b"a"), (2, b"bccccccccc"), (3, b""), (4, b"de")]


@pytest.mark.parametrize("n_bad, goes_on", [(2, True), (3, False)])
def test_more_than_one_percent_bad_stops_and_leaves_nothing(tok, tmp_path, n_bad, goes_on):
    path = write_jsonl(tmp_path / "a.jsonl", texts(200))
    path.write_bytes(path.read_bytes() + b"{\n" * n_bad)
    if goes_on:
        prepare(tok, [path], tmp_path / "out")
    else:
        stops("1.5% of the input cannot be read.*3 x not JSON.*nothing was", prepare, tok, [path], tmp_path / "out")
        assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_gives_what_it_holds_and_weighs_as_much_again(tok, tmp_path):
    for suffix in ("gz", "zst"):
        whole = write_jsonl(tmp_path / f"a.jsonl.{suffix}", texts(3000)).read_bytes()
        cut = tmp_path / f"cut.jsonl.{suffix}"
        cut.write_bytes(whole[:len(whole) * 2 // 3])
        *docs, last = documents(cut)
        assert docs == texts(3000)[:len(docs)] and 500 < len(docs) < 3000
        assert isinstance(last, Bad) and last.where == str(cut) and "truncated" in last.reason
        assert last.weight == len(docs)
        stops("50.0%.*truncated", prepare, tok, [cut], tmp_path / "out")


def test_several_streams_in_one_file_are_one_file(tmp_path):
    for suffix, pack in (("gz", gzip.compress), ("zst", zstandard.compress)):
        path = tmp_path / f"a.jsonl.{suffix}"
        path.write_bytes(pack(b'{"text": "on') + pack(b'e"}\n{"text": "two"}\n'))
        assert list(documents(path)) == ["one", "two"]


@pytest.mark.parametrize("name, content, reason", [
    ("a.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs"),
    ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs"),
    ("a.jsonl.gz", b'{"text": "not packed"}\n', "broken file"),
    ("a.jsonl.zst", b'{"text": "not packed"}\n', "broken file"),
    ("a.csv", b"text\n", "unknown suffix"),
    ("a.txt", b"caf\xe9", "not UTF-8"),
    ("a.xml", b"<html></html>", "no article"),
    ("a.nxml", b"<article><body>", "truncated"),
    ("a.xml", b'<?xml version="1.0" encoding="latin-1"?><article></article>', "another encoding"),
])
def test_a_file_that_cannot_be_read_is_named_with_its_reason(tok, tmp_path, name, content, reason):
    good, path = write_jsonl(tmp_path / "good.jsonl", texts(150)), tmp_path / name
    path.write_bytes(content)
    bad, = documents(path)
    assert str(path) in bad.where and reason in bad.reason
    assert sum(prepare(tok, [path, good], tmp_path / "out")["skipped"].values()) == 1
    stops(f"100.0% .*{reason}", prepare, tok, [path], tmp_path / "none")


def test_a_folder_stands_for_its_readable_files_and_the_others_are_counted(tok, tmp_path):
    folder = tmp_path / "in" / "deeper"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"document {i}")
    (folder / "0.txt.md5").write_text("0123")
    meta = prepare(tok, [tmp_path / "in"], tmp_path / "out", val_fraction=0)
    assert read_back(tok, tmp_path / "out", "train") == ["document 0", "document 1", "document 2"]
    assert meta["skipped"] == {"other file in a folder": 1}


def test_what_stands_in_out_is_replaced_only_when_asked_and_only_shards(tok, tmp_path):
    path, out = write_jsonl(tmp_path / "a.jsonl", texts(5)), tmp_path / "out"
    prepare(tok, [path], out, val_fraction=0)
    stops("exists", prepare, tok, [path], out)
    write_jsonl(path, ["other"])
    prepare(tok, [path], out, val_fraction=0, overwrite=True)
    assert read_back(tok, out, "train") == ["other"]
    (out / "meta.json").unlink()
    stops("no meta.json", prepare, tok, [path], out, overwrite=True)


def test_a_vocabulary_beyond_uint16_and_missing_files_are_errors(tok, tmp_path, monkeypatch):
    stops("no such file", prepare, tok, [tmp_path / "none.jsonl"], tmp_path / "out")
    monkeypatch.setattr(Tokenizer, "__len__", lambda self: 65537)
    stops("65,536", prepare, tok, [write_jsonl(tmp_path / "a.jsonl", ["x"])], tmp_path / "out")


def test_the_command_speaks_one_line_and_ends_with_2(tok, tmp_path):
    flags = ["--inputs", "none.jsonl", "--tokenizer", tok[0], "--out", tmp_path / "out"]
    done = launched("prepare/pubmed.py", *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: none.jsonl") and done.stderr.count("\n") == 1
    parsed = parse_args(pubmed.Prepare, argv=["--inputs", "a", "b", "--tokenizer", "t", "--out", "o"])
    assert parsed.inputs == (Path("a"), Path("b"))


# ---- XML ----

PUBMED = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle//EN" "https://example.org/pubmed.dtd">
<PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>Effect of <i>Bacillus</i> on
  H<sub>2</sub>O.</ArticleTitle><Abstract><AbstractText Label="AIM:">We got 10<sup>-3</sup> <b>cells</b>.</AbstractText>
<AbstractText Label="UNLABELLED">Ca<sup>2+</sup> was &lt; 5.</AbstractText>
<CopyrightInformation>(c)</CopyrightInformation></Abstract></Article></MedlineCitation></PubmedArticle>
<PubmedArticle><Article><ArticleTitle>No abstract.</ArticleTitle></Article></PubmedArticle>
<PubmedArticle><Article><ArticleTitle>Broken</Articletitle></Article></PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle>Models</ArticleTitle><Abstract><AbstractText>Rate <mml:math>
 <mml:mfrac><mml:mrow><mml:mi>a</mml:mi><mml:mo>+</mml:mo><mml:mi>b</mml:mi></mml:mrow><mml:msubsup><mml:mi>x</mml:mi>
 <mml:mn>2</mml:mn><mml:mi>k</mml:mi></mml:msubsup></mml:mfrac></mml:math> fell.</AbstractText></Abstract>
<OtherAbstract><AbstractText>Autre langue.</AbstractText></OtherAbstract></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>
"""

JATS = """<!DOCTYPE article PUBLIC "-//NLM//DTD JATS//EN" "JATS.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><journal-meta><journal-title>J</journal-title></journal-meta>
<article-meta><title-group><article-title>A <italic>title</italic></article-title></title-group>
<abstract abstract-type="toc"><p>A blurb.</p></abstract><abstract><p>In short.</p></abstract></article-meta></front>
<body><sec><label>1</label><title>Methods</title><p>As shown<sup><xref ref-type="bibr">3</xref></sup>
before<xref ref-type="bibr"><sup>5</sup></xref>
[<xref ref-type="bibr">4</xref>].<fig><label>Figure 1</label><caption><title>Growth.</title><p>Over time.</p></caption>
<graphic xlink:href="g.jpg"/></fig></p><sec><title>Counts</title><p>See <tex-math>\\document{x}</tex-math>below.</p>
<table-wrap><label>Table 1</label><caption><p>Numbers.</p></caption><table><tr><td>7</td></tr></table></table-wrap>
</sec></sec></body><back><ref-list><ref>Somebody</ref></ref-list></back></article>
"""

PUBMED_TEXTS = ["Effect of Bacillus on H2O.\nAIM: We got 10^-3 cells.\nCa2+ was < 5.", "",
                "Models\nRate (a+b)/(x_2^k) fell."]
JATS_TEXT = ("A title\n\nAbstract\n\nIn short.\n\nMethods\n\nAs shown before [4].\nFigure 1 Growth. Over time.\n\n"
             "Counts\n\nSee below.\n\nTable 1 Numbers.")


@pytest.mark.parametrize("name", ["a.xml", "a.xml.gz"])
def test_pubmed_keeps_labels_flattens_markup_and_loses_only_the_broken_article(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(PUBMED.encode()) if name.endswith("gz") else PUBMED.encode())
    items = list(documents(path))
    assert [item for item in items if isinstance(item, str)] == PUBMED_TEXTS
    bad = items[2]
    assert bad.where == f"{path}:9" and bad.reason.startswith("broken XML")


@pytest.mark.parametrize("block", [7, 64, 1 << 18])
def test_articles_are_found_however_the_file_falls_into_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr("plumbing.documents.BLOCK", block)
    (tmp_path / "a.xml").write_text(PUBMED)
    assert [d for d in documents(tmp_path / "a.xml") if isinstance(d, str)] == PUBMED_TEXTS


def test_a_set_of_articles_that_breaks_off_between_two_is_noticed(tmp_path):
    (tmp_path / "a.xml").write_text(PUBMED.removesuffix("</PubmedArticleSet>\n"))
    assert "truncated" in list(documents(tmp_path / "a.xml"))[-1].reason


@pytest.mark.parametrize("name", ["a.nxml", "a.nxml.gz", "a.xml"])
def test_jats_gives_title_abstract_and_body_without_references_cells_and_tex(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(JATS.encode()) if name.endswith("gz") else JATS.encode())
    assert list(documents(path)) == [JATS_TEXT]


RICH_JATS = """<article xmlns:mml="http://www.w3.org/1998/Math/MathML"><front><article-meta><title-group>
<article-title>T</article-title></title-group></article-meta></front><body>
<sec><title>Counts</title><p>We got 10<sup>5</sup>, 10<sup>6<xref ref-type="bibr">3</xref></sup> and
10<sup><italic>\u22123</italic></sup> cells<sup><xref ref-type="bibr">4</xref>,<xref ref-type="bibr">5</xref></sup> of
Na<sup>+</sup>.</p>
<p>Rate<inline-formula><mml:math><mml:mi>k</mml:mi></mml:math></inline-formula>is
(<inline-formula>n<sub>1</sub></inline-formula>), by <code>fit(x)</code>then <mml:math><mml:mi>y</mml:mi>
<mml:mo>=</mml:mo><mml:mi>log</mml:mi><mml:mo>\u2061</mml:mo><mml:mi>x</mml:mi><mml:mtext>if</mml:mtext>
<mml:mfenced><mml:mi>a</mml:mi><mml:mi>b</mml:mi></mml:mfenced></mml:math>.</p>
<fig><object-id>10.1/f1</object-id><label>Figure 1</label><caption><p>Growth.</p></caption><alt-text>ALT</alt-text>
<long-desc>LONG</long-desc><graphic><alt-text>ALT</alt-text></graphic>
<permissions><copyright-statement>(c)</copyright-statement></permissions></fig>
<media><label>Video 1.</label><caption><title>Mice.</title></caption></media></sec></body>
<floats-group><fig><label>Figure 2</label><caption><p>Death.</p></caption></fig><table-wrap><label>Table 1</label>
<caption><p>Ages.</p></caption><table><tr><td>7</td></tr></table></table-wrap></floats-group></article>"""

RICH_TEXT = ("T\n\nCounts\n\nWe got 10^5, 10^6 and 10^\u22123 cells of Na+.\n\nRate k is (n1), by\nfit(x)\nthen "
             "y=log x if(a,b).\n\nFigure 1 Growth.\n\nVideo 1. Mice.\n\nFigure 2 Death.\n\nTable 1 Ages.")


def test_jats_keeps_numbers_formulas_and_floating_captions_and_leaves_out_descriptions_and_permissions(tmp_path):
    (tmp_path / "a.nxml").write_text(RICH_JATS)
    assert list(documents(tmp_path / "a.nxml")) == [RICH_TEXT]


ABSTRACT = "<PubmedArticle><ArticleTitle>T</ArticleTitle><Abstract>{}</Abstract></PubmedArticle>\n"
PART = "<AbstractText>{}</AbstractText>"


def test_an_empty_label_labels_nothing(tmp_path):
    parts = "<AbstractText Label=''>One.</AbstractText><AbstractText Label=' : '>Two.</AbstractText>"
    (tmp_path / "a.xml").write_text(ABSTRACT.format(parts))
    assert list(documents(tmp_path / "a.xml")) == ["T\nOne.\nTwo."]


@pytest.mark.parametrize("inner", ["<i>" * 1200 + "x" + "</i>" * 1200,
                                   "<math>" + "<mrow>" * 1200 + "x" + "</mrow>" * 1200 + "</math>"])
def test_an_article_that_is_nested_too_deeply_is_named_and_the_rest_goes_on(tmp_path, inner):
    articles = [ABSTRACT.format(PART.format(text)) for text in ("One.", inner, "Two.")]
    (tmp_path / "a.xml").write_text("".join(articles))
    one, bad, two = documents(tmp_path / "a.xml")
    assert (one, two) == ("T\nOne.", "T\nTwo.") and bad == Bad(f"{tmp_path}/a.xml:2", "nested too deeply")


def test_a_mix_of_formats_becomes_one_corpus_and_articles_without_abstract_are_counted(tok, tmp_path):
    (tmp_path / "a.nxml").write_text(JATS)
    (tmp_path / "b.xml").write_text(PUBMED)
    (tmp_path / "c.txt").write_text("One text.")
    d = write_jsonl(tmp_path / "d.jsonl.zst", texts(150))
    inputs = [tmp_path / "a.nxml", tmp_path / "b.xml", tmp_path / "c.txt", d]
    meta = prepare(tok, inputs, tmp_path / "out", val_fraction=0)
    made = read_back(tok, tmp_path / "out", "train")
    assert made == [JATS_TEXT, PUBMED_TEXTS[0], PUBMED_TEXTS[2], "One text.", *texts(150)]
    assert meta["skipped"] == {"article without abstract": 1, "broken XML": 1}


# ---- questions ----

MEDQA = {"question": 'A man\nsays "ow". What is it?"', "options": {"B": "gout", "A": "flu", "C": "TB", "D": "none"},
         "answer": "gout", "answer_idx": "B", "meta_info": "step1"}
MEDMCQA = {"question": "Largest organ?", "opa": "skin", "opb": "liver", "opc": "lung", "opd": "eye", "exp": "skin!"}
PQA = {"QUESTION": "Does it work?", "CONTEXTS": [" We tried. ", "It did."], "LABELS": ["AIM", "RESULTS"],
       "LONG_ANSWER": "SECRET", "final_decision": "maybe"}
FOLD = {"id": "12", "question": "Does it work?", "contexts": [" We tried. ", "It did."], "long_answer": "SECRET",
        "label": "maybe"}
HUB = {"pubid": 12, "question": "Does it work?", "context": {"contexts": ["We tried.", "It did."], "labels": []},
       "long_answer": "SECRET", "final_decision": "maybe"}
OURS = {"id": "q", "context": "c", "question": "Which?", "options": ["a", "b"], "answer": 1}


def convert(task, tmp_path, content, name="in.jsonl", **flags):
    """The questions that qa.py makes out of records (or a file's text), as written to disk."""
    source, out = tmp_path / name, tmp_path / "out.jsonl"
    source.write_text(content if isinstance(content, str) else "".join(json.dumps(r) + "\n" for r in content))
    qa.main(qa.Questions(task, source, out, **flags))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_medqa_options_in_the_order_of_their_letters_and_the_stray_quote_gone(tmp_path):
    five = {"question": 'Is it "x"', "options": {**MEDQA["options"], "E": "no"}, "answer": "no", "answer_idx": "E"}
    first, second = convert("medqa", tmp_path, [MEDQA, five])
    assert first == {"id": "in-1", "context": "", "question": 'A man\nsays "ow". What is it?',
                     "options": ["flu", "gout", "TB", "none"], "answer": 1}
    assert len(second["options"]) == 5 and second["answer"] == 4 and second["question"] == 'Is it "x"'


@pytest.mark.parametrize("cops, answers", [([1, 4, 2], [0, 3, 1]), ([0, 3, 2], [0, 3, 2]), ([1, 2], [0, 1])])
def test_medmcqa_counts_from_one_or_from_zero_as_the_file_shows(tmp_path, capsys, cops, answers):
    made = convert("medmcqa", tmp_path, [{**MEDMCQA, "id": str(i), "cop": cop} for i, cop in enumerate(cops)])
    assert [q["answer"] for q in made] == answers and made[0]["options"] == ["skin", "liver", "lung", "eye"]
    assert f"from {0 if 0 in cops else 1}" in capsys.readouterr().out
    assert "!" not in json.dumps(made), "the explanation is not part of the input"


def test_medmcqa_without_answers_stops(tmp_path):
    stops("withheld", convert, "medmcqa", tmp_path, [{**MEDMCQA, "cop": -1}])


@pytest.mark.parametrize("name, content", [
    ("in.json", json.dumps({"12": PQA})),
    ("in.jsonl", json.dumps(FOLD)),
    ("in.jsonl", json.dumps(HUB)),
])
def test_pubmedqa_in_each_shape_never_shows_the_long_answer(tmp_path, name, content):
    assert convert("pubmedqa", tmp_path, content, name) == [
        {"id": "12", "context": "We tried. It did.", "question": "Does it work?", "options": ["yes", "no", "maybe"],
         "answer": 2}]


def test_pubmedqa_keeps_or_drops_the_ids_of_the_official_test_file(tmp_path):
    (tmp_path / "test.json").write_text('{"2": "yes"}')
    both = json.dumps({"1": PQA, "2": PQA})
    for flag, left in (("keep_ids", "2"), ("drop_ids", "1")):
        made = convert("pubmedqa", tmp_path, both, "in.json", **{flag: tmp_path / "test.json"})
        assert [q["id"] for q in made] == [left]
    stops("not in", convert, "pubmedqa", tmp_path, json.dumps({"1": PQA}), "in.json", keep_ids=tmp_path / "test.json")


def test_bioasq_golden_sets_and_lines_yes_no_only_without_html_and_repeats(tmp_path):
    snippets = ["<b>AIM</b>:<br>CO<sub>2</sub> &lt; 5, p<0.05 > 1", "<b>AIM</b>: CO2 &lt; 5, p<0.05 > 1",
                '<AbstractText Label="END">So.</AbstractText>']
    golden = {"questions": [
        {"id": "a", "type": "yesno", "body": "Is it?", "exact_answer": "Yes",
         "snippets": [{"text": s} for s in snippets]},
        {"id": "b", "type": "factoid", "body": "Which?", "exact_answer": [["x"]], "snippets": []}]}
    want = [{"id": "a", "context": "AIM: CO2 < 5, p<0.05 > 1 END: So.", "question": "Is it?", "options": ["yes", "no"],
             "answer": 0}]
    assert convert("bioasq", tmp_path, json.dumps(golden), "in.json") == want
    line = {"id": "a", "question": "Is it?", "snippets": snippets, "label": "yes"}
    assert convert("bioasq", tmp_path, [line]) == want


def test_mmlu_rows_have_no_header_and_newlines_within_fields(tmp_path):
    made = convert("mmlu", tmp_path, '"One,\ntwo?",a,b,"c, d",e,C\nNext?,1,2,3,4,A\n', "in.csv")
    assert [(q["question"], q["options"], q["answer"]) for q in made] == [
        ("One,\ntwo?", ["a", "b", "c, d", "e"], 2), ("Next?", ["1", "2", "3", "4"], 0)]


@pytest.mark.parametrize("task", ["medqa", "medmcqa", "pubmedqa", "bioasq", "mmlu"])
def test_questions_in_our_own_format_pass_through_every_task(tmp_path, task):
    assert convert(task, tmp_path, [OURS]) == [OURS]


@pytest.mark.parametrize("bad, why", [
    ({**OURS, "options": ["one"], "answer": 0}, "at least two options"),
    ({**OURS, "answer": 2}, "no index"),
    ({**OURS, "answer": True}, "no index"),
    ({**OURS, "options": ["a", " "]}, "empty"),
    ({**OURS, "question": " "}, "empty"),
    ({**OURS, "question": None}, "must be text"),
    ({**OURS, "id": "0"}, "already the id of line 1"),
    ({**OURS, "question": "\ud835"}, "surrogate"),
    ({**MEDQA, "answer_idx": "Z"}, "not one of A, B, C, D"),
    ({**MEDQA, "answer": "flu"}, "disagree"),
    ({"question": "?"}, "no 'options'"),
    ({**OURS, "id": ["q"]}, "its id ['q'] is neither text nor a number"),
    ({**MEDQA, "options": {"A": 1, "B": 2}, "answer": 1, "answer_idx": "A"}, "options must be text"),
    ("text", "indices"),
])
def test_a_malformed_question_is_named_and_the_rest_goes_on_up_to_one_percent(tmp_path, capsys, bad, why):
    good = [{**OURS, "id": str(i)} for i in range(120)]
    assert convert("medqa", tmp_path, good + [bad]) == good
    said = capsys.readouterr()
    assert "line 121" in said.err and why in said.err and "1 malformed" in said.out
    (tmp_path / "out.jsonl").unlink()
    stops("2 of 122.*more than 1 %", convert, "medqa", tmp_path, good + [bad, bad])
    assert not (tmp_path / "out.jsonl").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("line", ['{"id": 1' + "0" * 5000 + "}", "[" * 99999])
def test_a_line_that_json_refuses_for_its_size_is_named_and_the_rest_goes_on(tmp_path, capsys, line):
    good = [{**OURS, "id": str(i)} for i in range(120)]
    content = "".join(json.dumps(record) + "\n" for record in good) + line
    assert convert("medqa", tmp_path, content) == good
    assert "line 121: not JSON" in capsys.readouterr().err


def test_more_than_26_options_have_numbers_in_the_report_and_a_missing_id_is_made(tmp_path, capsys):
    many = {**OURS, "options": [f"option {i}" for i in range(30)], "answer": 28, "id": None}
    made = convert("medqa", tmp_path, [many, {**many, "answer": 0}])
    assert [q["id"] for q in made] == ["in-1", "in-2"]
    assert "1. 1 (50.0%)  29. 1 (50.0%)" in capsys.readouterr().out


def test_pubmedqa_contexts_that_are_one_text_are_not_taken_for_a_list(tmp_path):
    content = json.dumps({"12": {**PQA, "CONTEXTS": "We tried."}})
    stops("contexts are not a list", convert, "pubmedqa", tmp_path, content, "in.json")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: raw[:40] + bytes(30) + raw[70:],
                                    lambda raw: b"x"])
def test_a_damaged_gz_of_questions_is_one_line_that_names_it(tmp_path, damage):
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(damage(gzip.compress(json.dumps(MEDQA).encode() * 50)))
    stops("in.jsonl.gz: cannot be read to its end .*; download it again", qa.main,
          qa.Questions("medqa", path, tmp_path / "out.jsonl"))


@pytest.mark.parametrize("ids", ["5", "null", '"12"'])
def test_keep_ids_that_are_no_list_are_named(tmp_path, ids):
    (tmp_path / "ids.json").write_text(ids)
    stops("ids.json: neither a list", convert, "medqa", tmp_path, [OURS], keep_ids=tmp_path / "ids.json")


def test_files_without_questions_are_errors_that_say_what_to_do(tmp_path):
    stops("--keep-ids", convert, "pubmedqa", tmp_path, '{"1": "yes"}', "in.json")
    stops("git lfs pull", convert, "medqa", tmp_path, "version https://git-lfs.github.com/spec/v1\n")
    stops("no such file", qa.main, qa.Questions("medqa", tmp_path / "none.jsonl", tmp_path / "out.jsonl"))
    done = launched("prepare/qa.py", "mmlu", "none.csv", tmp_path / "out.jsonl")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "none.csv" in done.stderr
