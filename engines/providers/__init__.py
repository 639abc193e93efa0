"""What executes a bundle's graphs: one module per provider, and the choice among them."""
