"""The client of hotslot, which hot-plugs PCI devices into running libvirt guests.

:mod:`hotslotclient.sdk` adds the service to openstacksdk's connections, and :mod:`hotslotclient.osc` has the commands
of OpenStackClient.
"""
