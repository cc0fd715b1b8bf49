"""Adapters that open a language model into named sites, behind one protocol."""
