"""Other processes that work on the same cells. They meet in the store alone."""
