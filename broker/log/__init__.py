"""What is stored: each account's window of events, and the engines that fill it."""
