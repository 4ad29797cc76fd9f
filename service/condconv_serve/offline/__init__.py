"""Work with models and files without a server: classify, measure, verify, profile."""
