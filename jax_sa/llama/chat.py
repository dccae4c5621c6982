"""The chat template of a checkpoint directory; needs `pip install jax_sa[chat]`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

from jax_sa.llama.config import read_json

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


class ChatTemplate:
    """Messages as the text that an instruct model was trained to answer.

    A template is a Jinja program in a field of `tokenizer_config.json`, or in a file of its own. It
    comes with the checkpoint, so it runs in Jinja's sandbox.
    """

    def __init__(self, directory: pathlib.Path):
        """Reads the template; ValueError of one line if that cannot be done."""
        try:
            import jinja2.sandbox
        except ModuleNotFoundError:
            raise ValueError("the jinja2 package is missing: pip install jax_sa[chat]") from None
        self._directory = directory
        self._settings = read_json(directory / CONFIG_FILE)
        self._failure = jinja2.TemplateError
        sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        sandbox.filters["tojson"] = lambda value, **how: json.dumps(
            value, ensure_ascii=False, **how
        )
        sandbox.globals["raise_exception"] = self._refuse
        try:
            self._template = sandbox.from_string(self._read_template())
        except self._failure as error:
            raise ValueError(f"{directory}: chat template: {_first_line(error)}") from None

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of messages (`role` and `content` each), up to where the answer begins."""
        special = {
            name: self._special_token(name)
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **special)
        except (self._failure, TypeError, ValueError) as error:
            raise ValueError(f"{self._directory}: chat template: {_first_line(error)}") from None

    def _read_template(self) -> str:
        path = self._directory / TEMPLATE_FILE
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._settings.get("chat_template")
        if isinstance(template, list):  # several, each with a name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str):
            raise ValueError(f"{self._directory / CONFIG_FILE}: has no chat_template")
        return template

    def _special_token(self, name: str) -> str:
        token = self._settings.get(name)
        return token.get("content", "") if isinstance(token, dict) else token or ""

    def _refuse(self, message: str) -> NoReturn:
        raise self._failure(message)


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
