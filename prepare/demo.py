"""Write the demo's data: a small biomedical text that states facts, and questions about these facts.

Teaches what a language model must learn from text to answer questions, with data on which training takes minutes. The
text states each fact of demo_facts.py about fifty times in different words. The questions do not reveal the answers.
Not here: the facts (demo_facts.py), their wordings (demo_words.py), real abstracts (pubmed.py), real questions (qa.py).

    python prepare/demo.py             # data/demo: tokenizer, shards, documents.jsonl, questions/{train,dev,test}.jsonl
    python prepare/demo.py --seed 1    # other sentences, wrong answers and splits; the same facts

You should see a table: about 300 entities and 1,200 facts, under a million tokens, and the words with which the paper
compares vocabularies, each as one token. After fine-tuning on the training questions, a model that has read the text
answers four of five test questions, and one that has not read it one of four: guessing the most common answer does not
help (see deal), nor do names that give the answer away (families), nor wrong answers that are half right (suspects).
The facts are real, but the studies around them are invented.
"""
import random
import sys
import zlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of prepare/

from data import read_meta, write_shard
from plumbing.common import UserError, check_ranges, run_script, say_next, write_json, write_json_lines, written_whole
from prepare.demo_facts import ALSO_TRUE, FACTS, RELATIONS
from prepare.demo_words import QUESTIONS, SCENES, SENTENCES
from questions.format import Question, write_questions
from questions.metrics import guessing_accuracy
from tokenizer import PAPER_TERMS, Tokenizer

TITLES = ("{e}", "a study of {e}", "{e} revisited", "notes on {e}", "what we know about {e}", "a review of {e}",
          "new data on {e}", "Immunohistochemistry and {e}")
SHARES = {"train": 0.5, "dev": 0.15, "test": 0.35}               # of the entities
# Endings of names that reveal a class or a function. See signs_in() for other signs.
ENDINGS = ("vir", "coccus", "ella", "kinase", "dehydrogenase", "synthase", "hydroxylase", "carboxylase", "reductase",
           "oxidase", "dehydratase", "deaminase", "lyase")


@dataclass(frozen=True)
class Demo:
    """Write the demo's text, tokenizer and questions."""
    out: str = "data/demo"
    seed: int = 0
    vocab_size: int = 3072
    documents_per_entity: int = 48
    val_percent: float = 2.0      # of the documents, chosen by their hash
    questions_per_fact: int = 4   # for training, each with different wrong answers; dev and test have one


@dataclass(frozen=True)
class Entity:
    name: str
    kind: str
    values: dict                  # relation -> value
    group: str                    # the first value: a drug's class, a microbe's type ...


def main(cfg):
    check(cfg)
    entities = read_facts()
    rng = random.Random(cfg.seed)
    parts = split(entities, rng)
    times = {"train": cfg.questions_per_fact, "dev": 1, "test": 1}
    questions = {name: ask(part, entities, times[name], rng) for name, part in parts.items()}
    documents = write_documents(entities, cfg.documents_per_entity, random.Random(cfg.seed))
    tok = Tokenizer.train((text for _, text in documents), cfg.vocab_size)
    with written_whole(cfg.out) as folder:
        meta = write_corpus(folder, documents, tok, cfg)
        for name, part in questions.items():
            write_questions(folder / "questions" / f"{name}.jsonl", part)
    report(entities, parts, questions, meta, tok, cfg)
    say_next("train.py", "demo", "--data", cfg.out)
    return meta


def read_facts():
    """The entities of demo_facts.py, in the same order."""
    entities = []
    for kind, table in FACTS.items():
        for row in table.strip().splitlines():
            name, *cells = [cell.strip() for cell in row.split("|")]
            values = {r: v for r, v in zip(RELATIONS[kind], cells, strict=True) if v != "-"}
            entities.append(Entity(name, kind, values, cells[0]))
    return entities


def also_true():
    """value -> the entities and groups for which it is also right. An indented line continues the line above."""
    rows = (row.split(" | ") for row in ALSO_TRUE.strip().replace("\n    ", " ").splitlines())
    return {value: set(where.split(", ")) for value, where in rows}


def suspects(entity, relation, entities, also):
    """The values never offered as wrong answers: right, partly right, or right for another drug of the same class."""
    kin = [e for e in entities if e.group == entity.group and e.kind == entity.kind == "drug"]
    return ({e.values[relation] for e in [entity, *kin] if relation in e.values}
            | {value for value, where in also.items() if where & {entity.name, entity.group}})


def write_documents(entities, per_entity, rng):
    """(name, text) of all documents, shuffled. A document is about one entity and may mention a similar one."""
    alike = defaultdict(list)
    for e in entities:
        for fact in e.values.items():
            alike[fact].append(e)
    documents = [(e.name, write_document(e, alike, rng)) for e in entities for _ in range(per_entity)]
    rng.shuffle(documents)
    return documents


def write_document(entity, alike, rng):
    """'Title. Sentence. ...': each fact in a random wording and order, perhaps a scene and a similar entity."""
    sentences = [state(entity.name, r, v, rng) for r, v in entity.values.items()]
    rng.shuffle(sentences)
    fact = rng.choice(list(entity.values.items()))
    relatives = [e for e in alike[fact] if e is not entity]
    if relatives and rng.random() < 0.25:
        sentences.append(state(rng.choice(relatives).name, *fact, rng))
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(len(sentences)), rng.choice(SCENES))
    if rng.random() < 0.5:           # half of the titles are a question with its answer
        relation, value = rng.choice(list(entity.values.items()))
        title = [rng.choice(QUESTIONS[relation]).format(which="What", e=entity.name), value + "."]
    else:
        title = [rng.choice(TITLES).format(e=entity.name) + "."]
    return " ".join(capitalised(s) for s in [*title, *sentences])


def state(name, relation, value, rng):
    """One fact in a random wording: ("timolol", "class", "beta blocker") -> "timolol is a beta blocker."."""
    return rng.choice(SENTENCES[relation]).format(e=name, v=value, a=with_article(value))


def with_article(noun):
    # The sound decides (an RNA, an ACE). No value here begins with a silent h or a long u.
    return ("an " if noun[0] in "aeioAEIO" or noun.startswith("RNA") else "a ") + noun


def capitalised(sentence):
    """'atenolol is ...' -> 'Atenolol is ...'; mTOR and CFTR stay as they are."""
    first = sentence.split(" ", 1)[0]
    return sentence[0].upper() + sentence[1:] if first == first.lower() else sentence


def families(entities):
    """Lists of entities that share a sign, directly or through others."""
    found = []
    for e in entities:
        signs = set(signs_in(e))
        kin = [family for family in found if any(signs.intersection(signs_in(other)) for other in family)]
        found = [family for family in found if family not in kin] + [[*chain(*kin), e]]
    return sorted(found, key=lambda family: entities.index(family[0]))


def signs_in(entity):
    """The signs in a name that reveal an answer: metoprolol -> beta blocker; Borrelia burgdorferi -> Borrelia; MSH2 ->
    MSH; -kinase."""
    own = {"drug": entity.group, "microbe": entity.name.split()[0], "gene": entity.name[:3]}
    signs = [f"-{end}" for end in ENDINGS if any(word.endswith(end) for word in entity.name.split())]
    return signs + [own[entity.kind]] if entity.kind in own else signs


def split(entities, rng):
    """{"train": [entities], "dev": ..., "test": ...}: whole families, about SHARES of each kind.

    deal() can only balance a value that is right for at most a quarter of a relation's questions. So this takes the
    one of 100 random splits whose most common answers are least common.
    """
    kinds = [families([e for e in entities if e.kind == kind]) for kind in FACTS]
    return min((draw(kinds, rng) for _ in range(100)), key=popularity)


def draw(kinds, rng):
    """One random split. Large families come first, because they are hard to place."""
    parts = {name: [] for name in SHARES}
    for group in kinds:
        taken, total = Counter(), sum(map(len, group))
        for family in sorted(rng.sample(group, len(group)), key=len, reverse=True):
            name = max(SHARES, key=lambda n: SHARES[n] * total - taken[n])
            taken[name] += len(family)
            parts[name] += family
    return parts


def popularity(parts):
    """The sum over splits and relations of the squared share of the most common answer."""
    total = 0.0
    for part in parts.values():
        counts = {r: Counter(e.values[r] for e in part if r in e.values) for r in SENTENCES}
        total += sum((max(c.values()) / c.total()) ** 2 for c in counts.values() if c)
    return total


def ask(part, entities, times, rng):
    """`times` questions about each fact of `part`, in random wordings, with four options each; shuffled."""
    also, questions = also_true(), []
    for time in range(times):
        for relation, wordings in QUESTIONS.items():
            asked = [e for e in part if relation in e.values]
            for e, wrong in deal(asked, relation, entities, also, rng):
                place = len(questions) % 4               # the right answer is in each place equally often
                wrong.insert(place, e.values[relation])
                text = rng.choice(wordings).format(which="Which of these", e=e.name)
                questions.append(Question(f"{e.name}/{relation}/{time}", "", text, wrong, place))
    rng.shuffle(questions)
    return questions


def deal(asked, relation, entities, also, rng):
    """Deal three wrong answers to each entity of `asked`, like cards from a deck. Yields (entity, wrong answers).

    The deck contains each right answer three times, so a value is wrong three times as often as it is right, and a
    common one is no better guess. Entities with the fewest possible cards come first. If no card fits, any other value
    is taken.
    """
    deck = Counter(e.values[relation] for e in asked for _ in range(3))
    spare = sorted({e.values[relation] for e in entities if relation in e.values} - set(deck))
    barred = {e.name: suspects(e, relation, entities, also) for e in asked}
    order = rng.sample(asked, len(asked))
    for e in sorted(order, key=lambda e: sum(deck[v] for v in deck if v not in barred[e.name])):
        wrong = []
        for _ in range(3):
            free = [v for v in deck if v not in barred[e.name] and v not in wrong]
            weights = [max(deck[v], 0) ** 2 + 1e-3 for v in free]        # squared, so that the deck is used up evenly
            wrong.append(rng.choices(free, weights)[0] if free else
                         rng.choice([v for v in spare if v not in barred[e.name] and v not in wrong]))
            deck[wrong[-1]] -= 1
        yield e, wrong


def write_corpus(folder, documents, tok, cfg):
    """Write tokenizer, shards, documents.jsonl and meta.json. Returns the contents of meta.json."""
    tok.save(folder)
    write_json_lines(folder / "documents.jsonl", ({"about": name, "text": text} for name, text in documents))
    meta = {"made_by": "prepare/demo.py", "vocab_size": len(tok), "eos_id": tok.eos_id, "settings": asdict(cfg)}
    held_out = [zlib.crc32(text.encode()) % 10_000 < 100 * cfg.val_percent for _, text in documents]
    for part, is_val in (("train", False), ("val", True)):
        texts = [text for (_, text), val in zip(documents, held_out, strict=True) if val == is_val]
        ids = [piece for text in texts for piece in (tok.encode(text), [tok.eos_id])]
        tokens = np.concatenate(ids).astype(np.uint16)
        write_shard(folder / f"{part}_000000.bin", tokens)
        meta[part] = {"documents": len(texts), "tokens": len(tokens), "bytes": sum(len(t.encode()) for t in texts)}
    write_json(folder / "meta.json", meta)
    return meta


def check(cfg):
    check_ranges(cfg, ("documents_per_entity", "questions_per_fact"), vocab_size=(257, 1 << 16), val_percent=(0.1, 99))
    out = Path(cfg.out)
    occupied = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if occupied and read_meta(out).get("made_by") != "prepare/demo.py":
        raise UserError(f"{out}: contains files that prepare/demo.py did not write; choose another --out")


def report(entities, parts, questions, meta, tok, cfg):
    """Print what was written, and the tokens of the paper's example words."""
    facts = sum(len(e.values) for e in entities)
    chance, commonest = guessing_accuracy(questions["train"], questions["test"])
    print(f"{cfg.out}: {len(entities)} entities, {facts} facts, vocabulary {len(tok)}")
    for name in ("train", "val"):
        print(f"  text {name:<6}{meta[name]['documents']:>8,} documents {meta[name]['tokens']:>10,} tokens "
              f"{meta[name]['bytes']:>10,} bytes")
    for name, part in parts.items():
        print(f"  questions {name:<6}{len(questions[name]):>6,} about {len(part)} entities")
    print(f"  guessing on test: {chance:.1%} by chance, {commonest:.1%} with the most common answer of train")
    for term in PAPER_TERMS:
        pieces = [tok.decode_bytes([i]).decode() for i in tok.encode(term if term[0] == "I" else " " + term)]
        print(f"  {term:<22}{len(pieces)} token{'s' * (len(pieces) > 1)}: {'|'.join(pieces)}")


if __name__ == "__main__":
    run_script(main, Demo)
