"""Holds a client program of any language to what every client must do: `python -m clients.conformance`."""
