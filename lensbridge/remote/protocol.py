"""The names and numbers of the protocol."""

PROTOCOL = "lensbridge.remote/1"
"""What client and server speak; another number cannot be understood."""

SAFETENSORS = "application/vnd.lensbridge.safetensors"
JSON = "application/json"
EVENTS = "application/vnd.lensbridge.events"
"""Events and then the reply, each behind its sort (a byte) and its length (eight, lowest first)."""

EVENT, REPLY = b"E", b"R"

CLIENT = "Lensbridge-Client"
"""The header that tells clients apart, so that they take turns."""
