"""The parts of sample.py, in reading order:

text.py          prompts become tokens, tokens become text; stop strings
cache.py         keys and values of the tokens that have been read
score.py         how likely a text is
fast_linear.py   how weights lie in memory, and what the speed of a token is limited by
native.py        compiles and calls the C files: matvec.c, attend.c, cpu_step.c, native.h
cpu_step.py      one token on a CPU as one call
cuda_graph.py    one token on a GPU as one launch
"""
