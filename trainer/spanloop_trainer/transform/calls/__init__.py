"""One row a model call: the spans' tree, twins, status, and the stamps of gateway and exporter."""
