"""The chat templates by name. The config reads this module, so it imports nothing.

A template never writes BOS (the tokens step adds it where the recipe says so), closes every turn with EOS, and its
generation prompt is a prefix of the rendered answer: the tokens step relies on all three.
"""

from __future__ import annotations

_TURNS = (
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)
_EMPTY_SYSTEM = "{%- if messages[0]['role'] != 'system' %}{{- '<|system|>\\n' + eos_token + '\\n' }}{%- endif %}"


def templates() -> dict[str, str]:
    """Return the chat templates (Jinja) by name.

    zephyr: `<|user|>\\n...</s>\\n<|assistant|>\\n...</s>\\n`, the format of alignment-handbook's zephyr models.
    zephyr-empty-system: the same with an empty system turn first where a conversation has none, as alignment-handbook
    trained zephyr-7b-sft-full and the TPO authors' released code (utils/data.py) rendered its prompts.
    """
    return {"zephyr": _TURNS, "zephyr-empty-system": _EMPTY_SYSTEM + _TURNS}
