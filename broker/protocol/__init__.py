"""What travels: names, messages and frames, from bytes and to bytes. All of it is pure."""
