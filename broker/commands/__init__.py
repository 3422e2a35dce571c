"""What clients ask, and who does it."""
