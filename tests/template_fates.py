"""Published chat templates -> what each keeps of an answer, by how it is written down."""

import contextlib
import html
import re
from collections.abc import Sequence
from typing import Any

TRL = "1.16.0"
"""Version of TRL, whose package carries the templates as they are published."""

PUBLISHED = {
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_5_nothink": "Qwen3.5, without thinking",
    "qwen3_5_think": "Qwen3.5, thinking",
    "qwen3_6": "Qwen3.6",
    "qwen3_8": "Qwen3.8",
    "gemma3": "Gemma 3",
    "gemma4_v5": "Gemma 4",
    "idefics3": "Idefics 3",
    "smolvlm": "SmolVLM",
    "llava_next": "LLaVA-NeXT",
    "lfm2_2_5_vl": "LFM2.5-VL",
    "phi3_5": "Phi-3.5",
    "cohere2": "Command (Cohere 2)",
    "glm4moe": "GLM-4.5",
}
"""File of TRL -> model."""

HEAD = (
    "| template | answer as a string | as a list of parts | spaces around it | what ends it |"
    " `<think>` in the last turn | in earlier turns |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)
_THOUGHT, _SAID = "RIPE", "BLUE"
_REASONED = f"<think>\n{_THOUGHT}\n</think>\n\n{_SAID}"


def row(file: str, template: str) -> str:
    """Write a template's line of the table."""
    forms = {form: _fate(template, form) for form in ("string", "parts")}
    form = next((form for form, fate in forms.items() if fate == "kept"), None)
    if form is None:
        return f"| {PUBLISHED[file]} | {forms['string']} | {forms['parts']} | | | | |"
    behind = _render(template, [_SAID], form).partition(_SAID)[2]
    end = re.match(r"\s*(<[^>]+>|\[[^]]+\])", behind)
    spaces = (
        "kept" if f" {_SAID} {behind}" in _render(template, [f" {_SAID} "], form) else "cut off"
    )
    last, earlier = (
        _fate_of_thought(template, answers, form) for answers in ([_REASONED], [_REASONED, "LATER"])
    )
    # As HTML: a bar in backquotes would end the table's cell.
    ended = (
        "<code>{}</code>".format(html.escape(end[1]).replace("|", "&#124;")) if end else "nothing"
    )
    return (
        f"| {PUBLISHED[file]} | {forms['string']} | {forms['parts']} | {spaces} | {ended} |"
        f" {last} | {earlier} |"
    )


def _render(template: str, answers: Sequence[str], form: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    turns: list[dict[str, Any]] = []
    for answer in answers:
        for role, text in (("user", "Which?"), ("assistant", answer)):
            content = text if form == "string" else [{"type": "text", "text": text}]
            turns.append({"role": role, "content": content})
    texts, _ = render_jinja_template(
        conversations=[turns], chat_template=template, bos_token="<s>", eos_token="</s>"
    )
    return str(texts[0])


def _fate(template: str, form: str) -> str:
    text = None
    with contextlib.suppress(
        Exception
    ):  # templates raise what they like at a form they do not know
        text = _render(template, [_SAID], form)
    if text is None:
        return "refused"
    if f"'text': '{_SAID}'" in text:
        return "as Python prints it"
    return "kept" if _SAID in text else "**lost**"


def _fate_of_thought(template: str, answers: Sequence[str], form: str) -> str:
    text = _render(template, answers, form)
    if _THOUGHT not in text:
        return "left out"
    return "kept" if _REASONED in text else "written anew"
