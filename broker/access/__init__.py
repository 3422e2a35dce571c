"""Who may: keys, tokens, slots and rates."""
