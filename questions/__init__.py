"""The parts of questions."""
