"""The parts of sample.py, in reading order.

text.py          prompts from a file or stdin; whole characters and stop strings while tokens arrive
cache.py         the keys and values of the tokens read so far
score.py         how likely a text is
fast_linear.py   weight layouts: a token as fast as memory delivers the weights
choice.py        which layout and how many threads are fastest on this machine, by measurement
native.py        the C loops for a CPU, compiled on first use: matvec.c, cpu_step.c
cpu_step.py      one token on a CPU as one call into C
cuda_graph.py    one token on a GPU as one launch
"""
