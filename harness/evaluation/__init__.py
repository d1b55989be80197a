"""Plan, attack, judge, record: one cell after another, each once, resumable at any moment."""
