"""BERT, of any normalisation order and with any head."""
