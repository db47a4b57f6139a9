"""A processor without a model: words are tokens. Processes that unpickle it start in no time."""

from zlib import crc32


class WordProcessor:
    """Counts a token for ten pixels of width; one end token behind every answer."""

    image_token_id = 1
    turns = "recipe"

    def encode_prompt(self, user, num_images):
        return [*range(-1, -1 - num_images, -1), *map(self.number, user.split())]

    def encode_system(self, text):
        return [*map(self.number, text.split())]

    def encode_answer(self, assistant):
        return [*map(self.number, assistant.split()), 2]

    def num_image_tokens(self, width, height):
        return -(-width // 10)

    def grid(self, width, height):
        return 1, 1

    @staticmethod
    def number(word):
        return 3 + crc32(word.encode()) % 30_000
