"""The whole walk on a tiny model and bundled images, for whoever tries foveal first."""
