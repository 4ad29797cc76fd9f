"""More than one process: a service whose fronts and engines are apart."""
