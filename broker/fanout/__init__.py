"""Who hears it: subscribers, each a position in its account's log, and the one task that writes to them."""
