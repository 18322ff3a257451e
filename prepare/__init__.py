"""From downloads to the files that the scripts read: text to token shards, benchmarks to questions. In reading order:

pubmed.py        text to token shards; also fetches PubMed's abstracts
download.py      its command `download`: many gigabytes over an unreliable connection
exclude.py       its setting --exclude: no test set in the pretraining text
qa.py            the multiple-choice questions of all benchmarks, in one format
hub_qa.py        its downloads from the Hugging Face hub
sections.py      its command `sections`: a task made from structured abstracts
answers.py       questions with answers in words, for finetune_answers.py
export.py        a model as a GGUF file for llama.cpp, or as a repository on the Hugging Face hub
demo.py          the small world of `make demo`: text, tokenizer and questions
demo_words.py    the demo's language
demo_facts.py    the demo's facts

Sources of the data, and their terms. This repository contains no data. Check the terms before you use it.

PubMed abstracts     ftp.ncbi.nlm.nih.gov/pubmed/baseline (.xml.gz), fetched by `prepare/pubmed.py download`. Free to
                     download, but an abstract may be under its publisher's copyright.
PMC full texts       the bucket pmc-oa-opendata on AWS, pmc.ncbi.nlm.nih.gov/tools/pmcaws (JATS .xml). Each article has
                     its own licence; the commercial-use subset is CC BY or CC0.
The Pile             pile.eleuther.ai, PubMed Abstracts and PubMed Central (.jsonl.zst), BioMedLM's training data. It
                     contains the two sources above until 2020, so the same terms apply.
BioMedLM's weights   huggingface.co/stanford-crfm/BioMedLM. bigscience-bloom-rail-1.0, which restricts use; a model
                     fine-tuned from it stays under these restrictions.
MedQA                github.com/jind11/MedQA. Doubtful: its MIT licence covers the code. The questions come from exam
                     banks; its issue 19 asks whether they may be redistributed, and has no answer.
MedMCQA              github.com/medmcqa/medmcqa. Apache-2.0 on its hub card. Doubtful for the questions, which come
                     from Indian entrance examinations.
PubMedQA             github.com/pubmedqa/pubmedqa. MIT; the contexts are abstracts, with the terms of PubMed.
BioASQ               participants-area.bioasq.org, after free registration and under the terms stated there; the
                     snippets are from abstracts, with the terms of PubMed. BioBERT's authors put the factoid questions
                     into SQuAD's format: github.com/dmis-lab/bioasq-biobert.
MMLU                 github.com/hendrycks/test. MIT; the questions were collected from public web pages.
MedQuAD              github.com/abachaa/MedQuAD. CC BY 4.0; the answers of three of its sources are not included.
MeQSum               github.com/abachaa/MeQSum. Doubtful: no licence is stated.
"""
