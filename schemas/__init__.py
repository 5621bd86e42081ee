"""Frozen typed records, one per edge of the graph, and the codecs that store them."""
