"""Bytes: written whole or not at all, keyed, leased, mirrored; events and progress."""
