"""How events come in: one way for socket, HTTP and library."""
