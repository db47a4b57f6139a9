"""transformers' own image-text models, as their folders on the hub describe them."""
