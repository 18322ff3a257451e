"""Tokens become text while they arrive: whole characters, and nothing of a stop string.

Teaches two things that a loop over tok.decode gets wrong. A token may end in the middle of a character: its bytes wait
for the next (decoded one by one, abstracts with Greek letters break). And a stop string may begin in one token and end
in another: what could become one is held back until it is sure.

    stream = TextStream(tok, stops=("\\n\\n", "Question:"))
    print(stream.feed(token), end="")         # "" while undecided; stream.stopped once a stop string is complete
    print(stream.close(), end="")             # what was held back
"""
import codecs
import re

from plumbing.common import UserError


class TextStream:
    """The text of one sample; `text` is what has been given out so far."""

    def __init__(self, tok, stops=()):
        self.tok, self.stops = tok, stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")    # bytes that are not UTF-8 become U+FFFD
        self.text, self.held, self.stopped = "", "", False

    def feed(self, token):
        """The text that this token makes certain."""
        return self.advance(self.decoder.decode(self.tok.decode_bytes([token])))

    def close(self):
        """The rest, when no token follows."""
        if self.stopped:
            return ""
        return self.advance(self.decoder.decode(b"", final=True)) + self.give(len(self.held))

    def advance(self, new):
        self.held += new
        found = [at for at in map(self.held.find, self.stops) if at >= 0]
        if found:
            self.stopped, self.held = True, self.held[:min(found)]          # the stop string itself is not text
            return self.give(len(self.held))
        return self.give(len(self.held) - longest_beginning(self.held, self.stops))

    def give(self, n):
        given, self.held = self.held[:n], self.held[n:]
        self.text += given
        return given


def longest_beginning(text, stops):
    """How many of the last characters of `text` could be the beginning of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def check_stops(tok, stops):
    """UserError for a stop string that can never occur."""
    for stop in stops:
        if not stop:
            raise UserError("a stop string is empty; every text contains it")
        if re.fullmatch(r"<\|.*\|>|\[[A-Z]+\]", stop) and stop not in tok.specials:
            raise UserError(f"unknown stop string {stop!r}: it looks like a special token, but this model has only "
                            f"{', '.join(tok.specials)}")
