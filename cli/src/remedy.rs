//! The remedies that the service proposes, in the words of the command line.

/// What the service says by its paths, and the commands that do the same.
const COMMANDS: [(&str, &str); 9] = [
    ("GET os-pci_attachments lists", "`hotslot attachment list` lists"),
    ("GET os-pci/detail lists", "`hotslot pci list -l` lists"),
    ("GET os-pci lists", "`hotslot pci list` lists"),
    ("GET os-hypervisors lists", "`hotslot host list` lists"),
    ("GET servers lists", "`hotslot server list` lists"),
    ("GET /accelerators lists", "`hotslot accelerator list` lists"),
    ("change or remove it under os-pci-config", "change or remove it (`hotslot config`)"),
    ("; GET it until it is attached", "; `hotslot accelerator show` says when it is attached"),
    ("; DELETE it again", "; run `hotslot accelerator detach` again"),
];

/// A remedy of the service in the words of the command line, where it has a command for it.
pub(crate) fn by_commands(mut message: String) -> String {
    for (path, command) in COMMANDS {
        if message.contains(path) {
            message = message.replace(path, command);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_name_the_commands() {
        for (said, told) in [
            (
                "server x not found; GET servers lists those there are",
                "server x not found; `hotslot server list` lists those there are",
            ),
            ("no id; GET os-pci lists them", "no id; `hotslot pci list` lists them"),
            (
                "of a1; GET os-pci/detail lists what there is",
                "of a1; `hotslot pci list -l` lists what there is",
            ),
            ("busy", "busy"),
        ] {
            assert_eq!(by_commands(said.to_owned()), told);
        }
    }
}
