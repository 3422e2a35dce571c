"""The keeper: the one node of a cluster that has a log on disk, and in it all webhooks and queues."""
