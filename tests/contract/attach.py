"""Attaches, lists and detaches a device with a client that openapi-python-client has generated.

attach.py URL SERVER ALIAS      the generated package `hotslot_api` must be importable
"""

import importlib
import pkgutil
import sys
import time

import hotslot_api
from hotslot_api import Client
from hotslot_api.api.attachments import attachments_create, attachments_delete, attachments_list, attachments_show
from hotslot_api.models import Fault, NewPciAttachment, NewPciAttachments

for module in pkgutil.walk_packages(hotslot_api.__path__, "hotslot_api."):
    importlib.import_module(module.name)

url, server, alias = sys.argv[1:]
client = Client(base_url=url)


def listed():
    return [one.attachment_id for one in attachments_list.sync(server, client=client).pci_attachment]


body = NewPciAttachments(pci_attachment=NewPciAttachment(pci_passthroughalias=alias))
[made] = attachments_create.sync(server, client=client, body=body).pci_devices
assert (made.status, listed()) == ("attached", [made.attachment_id]), made
assert attachments_show.sync(server, made.attachment_id, client=client).pci_attachment.address == made.address

detached = attachments_delete.sync_detailed(server, made.attachment_id, client=client)
assert detached.status_code == 202, detached
deadline = time.monotonic() + 20
while listed() and time.monotonic() < deadline:
    time.sleep(0.05)
assert listed() == []
gone = attachments_show.sync(server, made.attachment_id, client=client)
assert isinstance(gone, Fault), gone
