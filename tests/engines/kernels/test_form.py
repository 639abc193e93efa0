"""The embedded bundle's queries and keys, and the kernel's twin, give the masks of its attention."""

import numpy as np
from diffseg.engines.bundle.bundle import open_bundle
from diffseg.engines.bundle.manifest import QUERIES_KEYS, UNET
from diffseg.engines.examples import example_images
from diffseg.engines.kernels.twin import averaged_attention
from diffseg.engines.providers.onnxruntime import OrtNetwork, check_tensors, load_session
from diffseg.image import fit_image, read_image
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression

from tests.networks import attend, encode


def test_the_embedded_form_gives_the_masks_of_the_attention():
    bundle = open_bundle("tiny")
    size, form = bundle.manifest.image_size, bundle.graph(UNET, QUERIES_KEYS)
    network = OrtNetwork(bundle)
    pixels, _ = fit_image(read_image(example_images()[0]), size)
    latent = encode(network, pixels[None])
    session = load_session(bundle.graph_path(UNET, QUERIES_KEYS))
    check_tensors(session, form.tensors, bundle.graph_path(UNET, QUERIES_KEYS))
    outputs = session.run(None, {form.tensors.inputs[0].name: latent})
    maps = [averaged_attention(q, k) for q, k in zip(outputs[::2], outputs[1::2], strict=True)]
    labels = []
    for averaged in (maps, attend(network, latent)):
        attention = aggregate_attention([np.array(one[0]) for one in averaged])
        labels.append(non_max_suppression(merge_attention(attention), size))
    assert len(np.unique(labels[1])) > 1
    # The form computes in float16, the attention of CPUs in float32: a few pixels on the edges of masks differ.
    assert np.mean(labels[0] == labels[1]) > 0.9995
