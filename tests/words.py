"""A processor without a model: words are tokens. Processes that unpickle it start in no time."""

from zlib import crc32

from foveal.data.images.frames import FrameChoice
from foveal.data.shapes import ImageShape
from foveal.data.turn_processor import EncodedTurns


class WordProcessor:
    """Counts a token for ten pixels of width; one end token behind every answer."""

    image_token_id = 1
    turns = "recipe"
    boxes = None
    frame_choice = FrameChoice()

    def words_fingerprint(self):
        return "words"

    def encode_turns(self, turns, system=""):
        entries, learnt, images, first = [*map(self.number, system.split())], [], 0, 0
        learnt += [False] * len(entries)
        for turn in turns:
            shown = range(-1 - images, -1 - images - turn.num_images, -1)
            prompt = [*shown, *map(self.number, turn.user.split())]
            answer = [*map(self.number, turn.assistant.split()), 2]
            entries += prompt + answer
            learnt += [False] * len(prompt) + [True] * len(answer)
            images, first = images + turn.num_images, first or len(prompt)
        return EncodedTurns(entries, learnt, first)

    def shape(self, width, height):
        tokens = -(-width // 10)
        return ImageShape(((self.image_token_id, tokens),), tokens, crops=1)

    @staticmethod
    def number(word):
        return 3 + crc32(word.encode()) % 30_000
