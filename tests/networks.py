"""A pass through one graph of a network, whose results are kept."""

from diffseg.arrays import to_host


def encode(network, images):
    """Images (B, H, W, 3) uint8 → latent (B, C, H/8, W/8) float32."""
    with network.session() as session:
        return to_host(session.encode(images)).copy()


def attend(network, latent):
    """Latent (B, C, H/8, W/8) → one attention (B, n², n²) float32 per resolution."""
    with network.session() as session:
        return [to_host(output).copy() for output in session.attend(latent)]
