"""What schemathesis cannot know from the description."""

import schemathesis

# The server of the simulated host.
SERVER = "10000000-0000-4000-8000-000000000001"


def whole(value):
    """Writes 1.0 as 1: JSON Schema takes both for an integer, and serde only the latter."""
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


@schemathesis.hook
def map_case(context, case):
    if not (case.meta and case.meta.generation.mode.is_positive):
        return case
    if case.meta.phase.name.value == "stateful":
        # Links lead from the first item of a list, so no filter may leave it empty.
        if case.method == "GET" and case.query:
            case.query.clear()
        if case.path_parameters and "server_id" in case.path_parameters:
            case.path_parameters["server_id"] = SERVER
    if isinstance(case.body, dict | list):
        case.body = whole(case.body)
    # A marker is the id of an item of the list, and no other is valid.
    if case.query:
        case.query.pop("marker", None)
    # Devices that the alias of the test has, so that there is something to detach.
    if case.operation.definition.raw.get("operationId") == "attachments_create" and isinstance(case.body, dict):
        case.body = {"pciAttachment": {"pci_passthrough:alias": "vf:1"}}
    return case
