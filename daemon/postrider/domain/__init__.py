"""Words and decisions of webhook delivery. Nothing here does I/O or awaits."""
