"""The commands of `diffseg`, thin: options in, words out; the work is done elsewhere."""
