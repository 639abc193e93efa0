"""Providers, which execute a bundle's graphs: one module each, and the choice among them."""
