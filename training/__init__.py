"""The parts of train.py and of the fine-tunings, in reading order.

finetuning.py    the loop that every fine-tuning shares: train.py's step over examples, a look at dev now and then
parallel.py      one model on many GPUs: DDP, FSDP, HSDP
checkpoint.py    what survives a kill at any moment
monitor.py       what a run prints and logs while it trains
trainable.py     which weights learn: all of them, or low-rank additions (LoRA)
adamw8bit.py     AdamW with one byte for each moment
"""
