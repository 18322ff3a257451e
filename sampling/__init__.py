"""The parts of sampling."""
