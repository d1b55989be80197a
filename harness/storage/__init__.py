"""Files: written whole or not at all, keyed, leased and mirrored; events and progress."""
