"""The Python that a view shows: it computes the numbers of the view with lensbridge alone."""

from lensbridge.serve.literals import literal
from lensbridge.serve.subject import Prompt, Subject


def program(subject: Subject, *lines: str, imports: str = "") -> str:
    """A whole program: imports, the model, and the lines of a view."""
    head, model = subject.code.split("\n\n", 1)
    imported = f"{head}\n{imports}".rstrip()
    return f"{imported}\n\n{model}" + "\n".join(lines) + "\n"


def assigned(name: str, prompt: Prompt) -> str:
    """A line that gives a prompt a name."""
    return f"{name} = {literal(prompt.given)}"


def at(prompt: Prompt, position: int, name: str = "position") -> str:
    """A line that gives a position a name, and says which token is there."""
    return f"{name} = {position}  # {prompt.labels[position]}"


def token(subject: Subject, name: str, one: int) -> str:
    """A line that gives a token's id a name, and says which token it is."""
    return f"{name} = {one}  # {subject.label(one)}"


def printed(subject: Subject, variable: str) -> str:
    """An expression that prints a token: as text, where the model has a tokenizer."""
    return f"repr(model.to_single_str_token({variable}))" if subject.has_tokenizer else variable
