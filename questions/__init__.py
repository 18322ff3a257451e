"""The parts of finetune_qa.py, in reading order.

format.py        one file format for every benchmark
heads.py         from a question to a score for each option
packed.py        each question is read once: its options are branches of a tree
encoder_rows.py  the same for BERT-like encoders: each option in a text of its own
ask.py           answers from a fine-tuned model that was kept
zero_shot.py     what a language model answers before it is fine-tuned
metrics.py       accuracy, F1, intervals, a paired test; was the test in the training set?
report.py        from predictions to a report
"""
