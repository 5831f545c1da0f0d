"""What `table.py` rests on: worlds that can be enumerated, closed forms at the start, and where methods end."""
