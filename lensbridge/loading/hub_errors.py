"""What went wrong when something was loaded by name, and what to do about it."""

from typing import Any

from lensbridge.errors import HubError, LoadError
from lensbridge.loading.aliases import similar_to


def explained(source: str, error: BaseException, options: dict[str, Any]) -> LoadError:
    """The error to raise for one that loading gave, with what to do about it."""
    from huggingface_hub import errors as hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    causes = _causes(error)

    def cause(*kinds: Any) -> Any:
        return next((one for one in causes if isinstance(one, kinds)), None)

    for kind, message in (
        (hub.HFValidationError, _NO_ID),
        (hub.GatedRepoError, _GATED),
        (hub.RevisionNotFoundError, _NO_REVISION),
        (hub.RepositoryNotFoundError, _NO_REPOSITORY),
    ):
        if cause(kind):
            said = message.format(repr(source), repr(options.get("revision")))
            return HubError(said + ("" if kind is hub.GatedRepoError else similar_to(source)))
    refused = cause(hub.HfHubHTTPError)
    if refused and not cause(hub.RemoteEntryNotFoundError):
        status = refused.response.status_code
        advice = _BY_STATUS.get(status, "Try again later, or pass the path of a folder.")
        return HubError(f"The hub answered {status} when asked for {source!r}. {advice}")
    if cause(hub.LocalEntryNotFoundError, hub.HTTPError, ConnectionError) and not refused:
        told = HF_HUB_OFFLINE or options.get("local_files_only")
        away = (_OFFLINE if told else _UNREACHABLE).format(repr(source))
        return HubError(away + similar_to(source))
    return LoadError(f"{source!r} could not be loaded: {_brief(error)}")


_NO_ID = "{} is neither a folder here nor a hub id (owner/name)."
_GATED = (
    "{} is gated. Ask for access on its hub page, then log in (`hf auth login`), set HF_TOKEN, or "
    "pass token=..."
)
_NO_REVISION = (
    "{} has no revision {}. Its hub page lists the branches, tags and commits; without "
    "revision=... its default branch is taken."
)
_NO_REPOSITORY = (
    "There is no model {} on the hub, or it is private. Check the spelling; for a private one set "
    "HF_TOKEN or pass token=...; for a folder pass its path."
)
_BY_STATUS = {
    401: "The token is not valid: log in again (`hf auth login`), or check HF_TOKEN.",
    403: "The token does not allow it: check what it may read on your settings page.",
    429: "That is too often: wait, and log in for a higher limit.",
}
_OFFLINE = (
    "{} is not on this machine and the hub may not be asked (HF_HUB_OFFLINE or local_files_only). "
    "Allow it, or pass the path of a folder that holds the model."
)
_UNREACHABLE = (
    "{} is not on this machine and the hub cannot be reached. Connect, or pass the path of a "
    "folder that holds the model."
)


def _brief(error: BaseException, lines: int = 10, width: int = 400) -> str:
    """The message of a foreign error, which may list every class that there is."""
    found = str(error).splitlines()
    kept = [line if len(line) <= width else f"{line[:width]}..." for line in found[:lines]]
    return "\n".join([*kept, "..."] if len(found) > lines else kept)


def _causes(error: BaseException | None) -> "list[BaseException]":
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
