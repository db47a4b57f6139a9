"""A run -> what people use: a folder that proves itself, a repository, an answer."""
