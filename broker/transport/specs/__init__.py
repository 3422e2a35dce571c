"""The protocol described for machines: AsyncAPI for the stream, OpenAPI for HTTP, both made from the code's types."""
