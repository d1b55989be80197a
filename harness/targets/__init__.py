"""Defended models: trained once, kept, loaded, and served to attacks through the victim's view."""
