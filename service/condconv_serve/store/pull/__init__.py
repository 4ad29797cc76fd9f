"""Published checkpoints: which there are, how they are downloaded and checked, and how they become bundles."""
