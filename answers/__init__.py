"""The parts of finetune_answers.py, in reading order.

examples.py      what the model reads of a prompt and its answer, and which tokens it learns
beam.py          beam search: the likeliest text instead of the likeliest next token
spans.py         extraction: windows of a long context, and the best span in all of them
extraction.py    fine-tuning on extraction: the presets span and bioasq8b
scores.py        ROUGE, BLEU, exact match, ranks, each with its interval
report.py        the model's scores beside those of trivial baselines
"""
