"""Plan, attack, judge and record cells, one after another, each once, resumable at any moment."""
