"""The plugin of Tempest."""

from pathlib import Path

from oslo_config import cfg
from tempest.test_discover import plugins

from hotslot_tempest_plugin import config as own
from tempest import config

_GROUPS = [(own.service_available_group, own.ServiceAvailableGroup), (own.hotslot_group, own.HotslotGroup)]


class HotslotTempestPlugin(plugins.TempestPlugin):
    """What Tempest asks of the plugin."""

    def load_tests(self) -> tuple[str, str]:
        """Returns the directory of the tests, and that of the package."""
        package = Path(__file__).resolve().parent
        return str(package / "tests"), str(package.parent)

    def register_opts(self, conf: cfg.ConfigOpts) -> None:
        """Adds the options of the tests."""
        for group, options in _GROUPS:
            config.register_opt_group(conf, group, options)

    def get_opt_lists(self) -> list[tuple[str, list[cfg.Opt]]]:
        """Returns the options, for a sample of ``tempest.conf``."""
        return [(group.name, options) for group, options in _GROUPS]
