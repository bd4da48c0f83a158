"""Packed files: integers at their true bit-width, sealed with a checksum."""
