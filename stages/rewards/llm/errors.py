"""Why no reward program came from the LLM."""

from stages.errors import TgrpoError


class LlmError(TgrpoError):
    """The LLM could not be asked, refused, or wrote nothing that passes."""


OFFLINE = "`tgrpo gen-reward --from-file reward.py` and `--builtin` need no LLM"
"""The remedy that always works."""
