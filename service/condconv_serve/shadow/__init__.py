"""Shadow traffic: copies of callers' images go to another version, and its answers are compared with those they got."""
