"""Attacks that other libraries ship, each library in a folder of its own, beside what they share."""
