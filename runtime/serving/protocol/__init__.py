"""What every server shares, below HTTP and Triton: tensors, settings, errors and the opening of untrusted images."""
