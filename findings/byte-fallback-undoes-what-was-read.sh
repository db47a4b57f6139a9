#!/usr/bin/env bash
# An answer that is cut inside its last rare character loses the rare characters before it too.
#
# Guessed:  decode of all tokens but the last gives all characters but the last, and a mark for the half one.
# Happens:  a name of two characters that stand in no vocabulary, cut by one byte, is five marks: the first character, whole in
#           its three bytes, is gone as well, however long the run. DecodeStream, which had given it out, raises at the
#           next token. SentencePiece's own decode of the same pieces keeps it.
# Why:      tokenizers/src/decoders/byte_fallback.rs, decode_chain gathers all bytes up to the next ordinary token and
#           makes every one of them a mark if not all together are UTF-8; so a later byte changes earlier text, and
#           step_decode_stream (tokenizer/mod.rs) finds that the text does not begin as what it has given.
# Matters:  Llama 2, Mistral, Phi-3 and Gemma write rare names and signs in bytes: transcriptions that end at max_new_tokens,
#           or have one byte wrong, score as if the whole name were unread, and a stream breaks off.
# Versions: tokenizers 0.23.3, sentencepiece 0.2.3.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" tokenizers==0.23.3 sentencepiece==0.2.3

python - <<'PYTHON'
import io
import sys

import sentencepiece
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

file = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["name of the sender", "the name", "sender of it"] * 9),
    model_writer=file, vocab_size=300, byte_fallback=True, model_type="bpe", hard_vocab_limit=False, minloglevel=2,
)  # fmt: skip
pieces = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
vocabulary = {pieces.id_to_piece(number): number for number in range(pieces.vocab_size())}
words = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
words.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
ids = pieces.encode("name 髙﨑")
whole, cut = words.decode(ids), words.decode(ids[:-1])
own = pieces.decode(ids[:-1])
print("pieces:", [pieces.id_to_piece(one) for one in ids])
print(f"whole {whole!r}, cut by one byte {cut!r}, cut and read by SentencePiece {own!r}")
stream, given, broken = DecodeStream(), "", ""
space = vocabulary["▁the"]
try:
    for one in [*ids[:-1], space]:
        given += stream.step(words, one) or ""
except Exception as error:
    broken = str(error)
print(f"streamed {given!r}, then: {broken}")
seen = (whole, cut, given, own.startswith("name 髙\ufffd"), broken.startswith("Invalid prefix"))
sys.exit(seen != ("name 髙﨑", "name " + "\ufffd" * 5, "name 髙", True, True))
PYTHON
