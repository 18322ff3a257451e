"""What every script needs and no reader has to study: nothing here changes what a model learns.

interrupt.py         Ctrl-C while a script is still importing
common.py            the command line, errors for the user, files that appear whole
runtime.py           device, memory, precision, signals
huggingface.py       the folder in which models are stored and exchanged
adapters.py          the same for low-rank additions, in the format of the peft library
tokenizer_files.py   a vocabulary as Hugging Face stores it
documents.py         every format of biomedical text, read as documents
"""
