"""Several processes that are one broker: their parent, what it binds, keeps and starts again, what each is given."""
