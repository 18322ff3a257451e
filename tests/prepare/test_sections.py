"""prepare/sections.py: each sentence has the label that its authors gave it, and no text is in two splits."""
import gzip
import json

import pytest

from plumbing.common import UserError
from prepare.sections import SECTIONS, Sections, labelled, make_sections, section_of, sentences
from questions.format import read_questions


@pytest.mark.parametrize("heading, section", [
    ("BACKGROUND", "background"), ("Introduction", "background"), ("RATIONALE", "background"),
    ("AIM OF THE STUDY", "objective"), ("Purpose", "objective"), ("AIMS AND OBJECTIVES", "objective"),
    ("MATERIALS AND METHODS", "methods"), ("METHODS/DESIGN", "methods"), ("Main outcome measures", "methods"),
    ("DESIGN, SETTING, AND PARTICIPANTS", "methods"), ("FINDINGS", "results"), ("Main Results", "results"),
    ("CONCLUSIONS/INTERPRETATION", "conclusions"), ("CONCLUSIONS & CLINICAL RELEVANCE", "conclusions"),
    ("METHODS AND RESULTS", ""), ("BACKGROUND/AIMS", ""), ("OBJECTIVE AND DESIGN", ""), ("FUNDING", ""),
    ("Trial registration number", ""), ("ELECTRONIC SUPPLEMENTARY MATERIAL", ""),
    ("The main outcomes were", None), ("Group A", None), ("Aspirin", None)])
def test_a_heading_is_one_section_a_mixture_or_no_heading(heading, section):
    assert section_of(heading) == section


TEXT = ("Aspirin in mice: a trial. BACKGROUND: Pain is common in mice vs. rats. Few trials of E. coli exist. "
        "METHODS AND RESULTS: This sentence is of no single section. METHODS: We gave one of two drugs: aspirin or "
        "none to mice. Short one. RESULTS:Pain fell in all 20 mice (p < 0.05). 12 rats died within a day. "
        "CONCLUSION: Aspirin is a drug for mice. Trial registration: NCT00000001 was registered in 2001.")


def test_headings_are_cut_off_and_sentences_are_whole():
    assert sentences(TEXT) == [
        ("background", "Pain is common in mice vs. rats."), ("background", "Few trials of E. coli exist."),
        ("methods", "We gave one of two drugs: aspirin or none to mice."),
        ("results", "Pain fell in all 20 mice (p < 0.05)."), ("results", "12 rats died within a day."),
        ("conclusions", "Aspirin is a drug for mice.")]
    assert sentences("Objective: To cure mice of pain. Results: All of them were cured.") == [], "two sections only"


def test_any_phrase_at_the_beginning_of_a_line_is_a_heading_because_labels_of_xml_are_printed_there():
    text = "\nTitle\nResults: It fell.\nEthical considerations: None known.\nConclusion: It falls."
    assert labelled(text) == [("results", "It fell.\n"), ("conclusions", "It falls.")]


def abstracts(n):
    """Different in every run of 20 words."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    numbers = [" ".join(names[int(digit)] for digit in str(i)) for i in range(n)]
    return [f"A study. BACKGROUND: Pain is common in mouse {i}. METHODS: We treated mouse {i} with aspirin. "
            f"RESULTS: The pain of mouse {i} fell at once. CONCLUSION: Use aspirin in mouse {i}." for i in numbers]


def write(path, texts):
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    return path


def make(path, out, **sizes):
    defaults = {"test_documents": 4, "dev_documents": 3, "train_documents": 8}
    return make_sections(Sections(path, out, **defaults | sizes))


def test_the_splits_are_of_different_abstracts_whatever_the_order_of_the_file(tmp_path):
    texts = abstracts(40)
    copies = [text + " FUNDING: None." for text in texts[:5]]
    make(write(tmp_path / "a.jsonl.gz", texts + copies + texts), tmp_path / "a")
    make(write(tmp_path / "b.jsonl.gz", (copies + texts)[::-1]), tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    parts = [read_questions(tmp_path / f"a/sections_{split}.jsonl") for split in ("test", "dev", "train")]
    assert [len(part) for part in parts] == [16, 12, 32]
    ids = [{q.id.split("-")[0] for q in part} for part in parts]
    assert [len(part) for part in ids] == [4, 3, 8] and len(set.union(*ids)) == 15
    assert all(q.options == SECTIONS and q.context == "" for part in parts for q in part)

    listed = [json.loads(line) for line in (tmp_path / "a/sections_documents.jsonl").read_text().splitlines()]
    assert [document["id"] for document in listed] == sorted(set.union(*ids)), "in the order of the CRC-32"
    assert all(document["text"] in texts + copies for document in listed)
    assert all(any(q.question in document["text"] for document in listed) for q in parts[0])


def test_a_sentence_that_two_abstracts_share_is_asked_once(tmp_path):
    texts = [text + " Further research is needed in any case." for text in abstracts(15)]
    questions = make(write(tmp_path / "a.jsonl.gz", texts), tmp_path / "out")
    asked = [q.question for part in questions.values() for q in part]
    assert asked.count("Further research is needed in any case.") == 1 and len(asked) == 61


def test_too_few_structured_abstracts_are_an_error_that_names_the_setting(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", abstracts(14))
    with pytest.raises(UserError, match="14 abstracts .* 15 are needed; lower --train-documents"):
        make(path, tmp_path / "out")
    with pytest.raises(UserError, match="--dev-documents is 0; it must be at least 1"):
        make(path, tmp_path / "out", dev_documents=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        make(tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(UserError, match="OUT must be a folder"):
        make(path, path)


def test_labels_of_pubmeds_xml_serve_as_headings(tmp_path):
    article = """<PubmedArticle><Article><ArticleTitle>Mice</ArticleTitle><Abstract>
        <AbstractText Label="Background and aims" NlmCategory="BACKGROUND">Of two sections: dropped.</AbstractText>
        <AbstractText Label="Objective">To cure the pain of mouse {0}.</AbstractText>
        <AbstractText Label="METHODS">We treated mouse {0} with aspirin.</AbstractText>
        <AbstractText Label="Ethics">Mouse {0} gave consent.</AbstractText>
        <AbstractText Label="RESULTS">The pain of mouse {0} fell.</AbstractText></Abstract></Article></PubmedArticle>"""
    articles = "".join(article.format(i) for i in range(15))
    (tmp_path / "a.xml").write_text(f"<PubmedArticleSet>{articles}</PubmedArticleSet>")
    parts = make(tmp_path / "a.xml", tmp_path / "out")
    sections = ["objective", "methods", "results"]
    assert [q.options[q.answer] for part in parts.values() for q in part] == 15 * sections
