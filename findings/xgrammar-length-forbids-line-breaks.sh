#!/usr/bin/env bash
# A string with a maxLength, or a minLength of 1, can hold no line break, quotation mark or backslash under XGrammar.
#
# Guessed:  "maxLength": 200 bounds the length, and leaves what may stand in the string as it was.
# Happens:  without it "two\nlines" and "12\" pipe" are taken, with it they are refused at the backslash; "minLength": 1 and
#           any "pattern" do the same. llguidance takes all of them.
# Why:      XGrammar's cpp/json_schema_converter.cc, GenerateString writes a bounded string as [^"\\\r\n]{n,m}, an unbounded
#           one as a rule with escapes.
# Matters:  transcriptions asked for by a schema with a sensible bound, in vLLM and SGLang by default: a model cannot write
#           the line break or the inch mark that it sees, and writes something else with full confidence.
# Versions: xgrammar 0.2.8, llguidance 1.9.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" xgrammar==0.2.8 llguidance==1.9.1 torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import json
import sys

from llguidance import LLMatcher, LLTokenizer
from xgrammar import Grammar
from xgrammar.testing import _is_grammar_accept_string

BYTES = LLTokenizer("byte")
TEXTS = ("two lines", "two\nlines", '12" pipe', "C:\\scan")
SCHEMAS = ({}, {"maxLength": 200}, {"minLength": 1}, {"pattern": "^[^,]+$"})


def by_llguidance(schema, written):
    matcher, tokens = LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(schema)), BYTES.tokenize_str(written)
    return matcher.validate_tokens(tokens) == len(tokens)


seen = {}
for rest in SCHEMAS:
    schema = json.dumps({"type": "string"} | rest)
    for title, takes in (("xgrammar", lambda one, text: _is_grammar_accept_string(Grammar.from_json_schema(one), text)), ("llguidance", by_llguidance)):
        taken = [takes(schema, json.dumps(text)) for text in TEXTS]
        seen.setdefault(title, []).append(taken)
        print(f"{title}, {schema}:", ", ".join(f"{json.dumps(text)} {'taken' if one else 'refused'}" for text, one in zip(TEXTS, taken, strict=True)))
plain = [True, False, False, False]
sys.exit(seen != {"xgrammar": [[True] * 4, plain, plain, plain], "llguidance": [[True] * 4] * 4})
PYTHON
