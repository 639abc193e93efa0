"""The commands of `diffseg`. They parse options and print results; other packages do the work."""
