"""A path, wherever it lies -> an upright RGB image, a clip's frames, and the sizes of both."""
