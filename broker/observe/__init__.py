"""What is to be seen of a running broker: who is connected, its figures, its tasks. Read when somebody asks."""
