"""The load generator: processes of raw sockets that publish on time and count every event that arrives."""
