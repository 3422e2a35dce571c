"""What clients may do to a broker to be in everybody's way: one table, for the tests and for the benchmark alike."""
