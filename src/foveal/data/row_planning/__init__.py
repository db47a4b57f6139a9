"""What the planner of rows asks: sizes, groups, order and balance (pure)."""
