"""Commands as a user runs them."""

from __future__ import annotations

from click.testing import CliRunner, Result

from onnxcomp.cli import main


def run(*arguments: str, code: int = 0) -> Result:
    """What a command printed; it has to end with that code."""
    result = CliRunner().invoke(main, list(arguments), env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result
