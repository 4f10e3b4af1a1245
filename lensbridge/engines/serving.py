"""Serving: a served model as a deployment of Ray Serve, with replicas, a queue and autoscaling.

Each replica loads the model and has the application of `lensbridge.serve.make_api`; Ray Serve hands
requests to them. Clients use `lensbridge.connect`, as with `lensbridge serve MODEL --api`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lensbridge.errors import InputError
from lensbridge.remote.limits import Limits

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class RayServe:
    """A model as a deployment of Ray Serve.

    Args:
        model: what `lensbridge.load` takes on the machines of the cluster: a hub id or a folder.
        token: the secret that requests must carry; "" asks for none.
        load: other arguments of `lensbridge.load`.
        replicas: how many copies of the model; (least, most) lets Ray Serve choose by the load.
        gpus: of each replica.
        cpus: of each replica.
        limits: how much one request may ask for; those of one replica.
        hosts: names that it may be reached by, besides localhost and IP addresses.
        waiting: requests that wait for a replica, before others are refused.
        name: what clients are told that the model is called; None: the model's own name.

    Raises:
        InputError: numbers that do not fit each other.

    Example:
        >>> served = RayServe("gpt2", token="a-secret", replicas=(1, 4), gpus=1)
        >>> served.settings["autoscaling_config"]
        {'min_replicas': 1, 'max_replicas': 4, 'target_ongoing_requests': 2}
    """

    model: str
    token: str
    load: Mapping[str, Any] | None = None
    replicas: int | tuple[int, int] = 1
    gpus: float = 0
    cpus: float = 1
    limits: Limits = Limits()  # noqa: RUF009
    hosts: tuple[str, ...] = ()
    waiting: int = 64
    name: str | None = None

    def __post_init__(self) -> None:
        least, most = self._range
        if not 0 <= least <= most or most < 1:
            raise InputError(
                f"replicas={self.replicas!r}: it is a number from 1 on, or (least, most)."
            )

    @property
    def _range(self) -> tuple[int, int]:
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas,) * 2

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the deployment, as Ray Serve calls them."""
        least, most = self._range
        begun = self.limits.max_begun
        scaled: dict[str, Any] = {"num_replicas": most}
        if isinstance(self.replicas, tuple):
            target = max(1, begun // 2)
            scaled = {
                "autoscaling_config": {
                    "min_replicas": least,
                    "max_replicas": most,
                    "target_ongoing_requests": target,
                }
            }
        return {
            **scaled,
            "name": "lensbridge",
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "max_ongoing_requests": begun,
            "max_queued_requests": self.waiting,
        }

    def deployment(self) -> Any:
        """The application for `ray.serve.run`, or for the configuration of a cluster.

        Raises:
            InputError: Ray Serve is not installed.
        """
        serve = _serve()
        made = serve.ingress()(Replica)
        return serve.deployment(made, **self.settings).bind(self)

    def run(self, host: str = "127.0.0.1", port: int = 8000, address: str | None = None) -> str:
        """Start it on a cluster; it goes on until `ray.serve.shutdown()`.

        Args:
            host: the address that the cluster's proxies listen at.
            port: their port.
            address: of the cluster. None: the one that this process is connected to, or a new one
                on this machine.

        Returns:
            The address for `lensbridge.connect`.

        Raises:
            InputError: Ray Serve is not installed, or everybody could use the model.
        """
        if not self.token and host not in _LOCAL:
            raise InputError(
                f"Without a token everybody who reaches {host} could use the model. Give a token, "
                "or listen at 127.0.0.1."
            )
        serve = _serve()
        _connected(address)
        serve.start(http_options={"host": host, "port": port})
        serve.run(self.deployment(), name="lensbridge", route_prefix="/")
        shown = "127.0.0.1" if host == "0.0.0.0" else host
        return f"http://{shown}:{port}"


class Replica:
    """One copy of a served model.

    Args:
        served: what is served, and how.
    """

    def __init__(self, served: RayServe) -> None:
        import lensbridge

        self._served = served
        self._model = lensbridge.load(served.model, **(served.load or {}))

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Ray Serve hands requests to."""
        from lensbridge.serve import make_api

        served = self._served
        return make_api(self._model, served.token or None, served.limits, served.hosts, served.name)


def _connected(address: str | None) -> None:
    import ray

    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False)


def _serve() -> Any:
    """The module `ray.serve`.

    Raises:
        InputError: it is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise InputError("This needs Ray Serve: pip install 'lensbridge[ray]'.") from error
    return serve
