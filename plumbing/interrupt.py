"""Ctrl-C while a script is still importing torch: one line instead of a traceback. Import it before everything else.

Not here: Ctrl-C later, when speaking_to_the_user (common.py) has begun.
"""
import sys


def report(kind, error, traceback, otherwise=sys.excepthook):
    """The hook for errors that nothing catches. After it Python ends as SIGINT does, which a shell shows as 130."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        otherwise(kind, error, traceback)


sys.excepthook = report
