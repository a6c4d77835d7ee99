"""What schemathesis cannot know from the description."""

import schemathesis


@schemathesis.hook
def map_case(context, case):
    if not (case.meta and case.meta.generation.mode.is_positive):
        return case
    # A marker is the id of an item of the list, and no other is valid.
    if case.query:
        case.query.pop("marker", None)
    # Devices that the alias of the test has, so that there is something to detach. Networks are for one device of a NIC.
    if case.operation.definition.raw.get("operationId") == "attachments_create" and isinstance(case.body, dict):
        case.body["pciAttachment"] = {"pci_passthrough:alias": "vf:1"}
    return case
