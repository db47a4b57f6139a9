"""Know before you pay: memory, time and cost of a run from shapes; `estimate.py` is the way in."""
