"""The parts of finetune_qa.py, in reading order.

format.py        one file format for every benchmark
heads.py         from a question to a score for each option
packed.py        each question is read once: its options are branches of a tree
ask.py           ask a fine-tuned model
zero_shot.py     answers of a language model without fine-tuning
metrics.py       accuracy, F1, intervals, a paired test, overlap of test and training set
report.py        from predictions to a report
"""
