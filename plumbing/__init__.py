"""The parts of plumbing."""
