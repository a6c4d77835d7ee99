"""Lists in pages."""

from typing import Any

from openstack import resource


class Listed(resource.Resource):
    """A resource whose lists may have several pages."""

    allow_list = True

    @classmethod
    def _get_next_link(cls, uri: str, *rest: Any, **named: Any) -> Any:
        # The service names the next page by the address at which a proxy has reached it, which may not be the client's.
        link, query = super()._get_next_link(uri, *rest, **named)
        return uri if link else None, query
