"""The parts of answers."""
