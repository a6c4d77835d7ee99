"""The options of the tests in ``tempest.conf``."""

from oslo_config import cfg

service_available_group = cfg.OptGroup(name="service_available", title="Available OpenStack Services")

ServiceAvailableGroup = [
    cfg.BoolOpt("hotslot", default=True, help="Whether hotslot is expected to be available"),
]

hotslot_group = cfg.OptGroup(name="hotslot", title="Options of the tests of hotslot")

HotslotGroup = [
    cfg.StrOpt("catalog_type", default="hotslot", help="Type of the service in the catalog"),
    cfg.StrOpt("endpoint_type", default="publicURL", help="Interface of the service in the catalog"),
    cfg.StrOpt("server_id", help="Running server of the project, with a free port, to which the tests attach devices"),
    cfg.StrOpt("alias", help="Alias of which one device is free"),
    cfg.StrOpt("device_type", default="PCI", help="Type of an accelerator that is free"),
]
