"""Parts that the HTTP server and Triton share: tensors, settings, errors, and the opening of untrusted images."""
