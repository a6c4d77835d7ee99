//! The service names REST routes and JSON fields in its messages. Here they become commands and options.

use hotslot_model::remedy::translate;

/// A request as a message of the service names it, and the command that does the same. Each `{}` of a route stands for
/// one segment of a path; the first one is inserted for `{}` in the command. The commands of Cyborg's v2 API are those
/// of python-openstackclient, because the command line has none for it.
const ROUTES: [(&str, &str); 23] = [
    ("GET servers", "`hotslot server list`"),
    ("GET os-pci", "`hotslot pci list`"),
    ("GET os-pci/detail", "`hotslot pci list -l`"),
    ("GET os-pci_attachments", "`hotslot attachment list`"),
    ("GET os-hypervisors", "`hotslot host list`"),
    ("GET os-hypervisors/{}/pci_devices", "`hotslot device list --all --host {}`"),
    ("GET os-hypervisors/{}/pci_devices/{}", "`hotslot device show DEVICE -o json`"),
    ("GET accelerators", "`hotslot accelerator list`"),
    ("GET drift", "`hotslot drift`"),
    ("GET events", "`hotslot events`"),
    ("GET flavors", "`hotslot flavor list`"),
    ("GET caller", "`hotslot whoami`"),
    ("GET os-pci-config/whitelist", "`hotslot config device-spec list`"),
    ("GET os-pci-config/alias", "`hotslot config alias list`"),
    ("GET os-pci-config/extra_info", "`hotslot config extra-info list`"),
    ("PUT os-hypervisors/{}/mode", "`hotslot host thaw {}`"),
    ("POST servers/{}/pci_ports", "`hotslot server prepare {}`"),
    ("PUT accelerators/{}/acc_specs", "`hotslot accelerator spec {} SPEC`"),
    ("PUT accelerators/{}", "`hotslot accelerator attach {}`"),
    ("PUT os-quota-sets/{}", "`hotslot quota set {} RESOURCE=NUMBER`"),
    ("DELETE accelerators/{}", "`hotslot accelerator detach {}`"),
    ("DELETE accelerator/v2/accelerator_requests/{}", "`openstack accelerator arq delete {}`"),
    ("POST accelerator/v2/devices/{}/enable", "`openstack accelerator device enable {}`"),
];

/// Phrases of the service that are not a method with a route, and what they are on the command line.
const PHRASES: [(&str, &str); 32] = [
    ("bad levels: ", ""),
    (r#"; send {"levels": "info,hotslot_driver=debug"}"#, ""),
    // The command line makes the body of the request, and its user writes only the spec in it.
    (
        r#"send {"acc_specs": {"remote": 0, "num": 1, "device_type": "CRYPTO", "acc_capability": {}}}"#,
        r#"write a spec such as '{"device_type": "GPU", "num": 1}'"#,
    ),
    ("bad body: acc_specs: ", "bad spec: "),
    ("bad body: the name must have", "the name must have"),
    (r#"; send {"name": "IPSec Card"}"#, ""),
    (r#"with "any_device": true"#, "with --any"),
    (
        "send a token (Authorization: Bearer …; `hotslot token create` makes one)",
        "set HOTSLOT_TOKEN, or name --token-file (`hotslot token create` makes a token)",
    ),
    (
        "send a token of Keystone's (X-Auth-Token; `openstack token issue` prints one)",
        "name --os-cloud, or set HOTSLOT_TOKEN to a token of Keystone's (`openstack token issue` prints one)",
    ),
    (r#"omit "persistent" or set it to true"#, "omit --live-only"),
    ("repeat the request with since=", "repeat the command with --since "),
    ("query key kind: ", "--kind: "),
    ("query key server: ", "--server: "),
    ("query key device: ", "--device: "),
    ("query key attachment: ", "--attachment: "),
    ("` with count ", "` with --ports "),
    ("PUT a spec with", "run `hotslot accelerator spec` with"),
    ("dry_run: ", ""),
    ("without dry_run", "without --dry-run"),
    ("omit mac_address", "omit --mac"),
    ("GET its pci_owner", "run `hotslot server show`"),
    ("DELETE the accelerator", "run `hotslot accelerator detach`"),
    ("DELETE it", "run `hotslot accelerator detach`"),
    ("GET the accelerator", "run `hotslot accelerator show`"),
    ("GET it", "run `hotslot accelerator show`"),
    ("under os-pci_attachments", "with `hotslot detach`"),
    ("under os-pci-config", "with `hotslot config`"),
    ("?force=true", "--force"),
    ("with force", "with --force"),
    ("request one with vgpu_type", "request one with --vgpu-type"),
    ("\"whole_group\": true", "--whole-group"),
    ("whole_group", "--whole-group"),
];

/// Returns a message of the service with commands and options in place of REST routes and JSON fields. A route for
/// which there is no command stays as it is.
pub(crate) fn by_commands(message: &str) -> String {
    with_number_of_ports(translate(message, &ROUTES, &PHRASES))
}

/// Makes one command of "`hotslot server prepare ID` with --ports N".
fn with_number_of_ports(text: String) -> String {
    let Some((before, after)) = text.split_once("` with --ports ") else { return text };
    let number = after.len() - after.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, after) = after.split_at(number);
    format!("{before} --ports {number}`{after}")
}

/// What the keys of the request of `hotslot attach` are on the command line.
const KEYS_OF_ATTACH: [(&str, &str); 11] = [
    ("another numa_policy", "another --numa-policy"),
    ("pci_passthrough:alias: ", ""),
    // Lists of these keys. No entry matches in what another one has written.
    ("mac_address, vlan, physical_network, ", "--mac, --vlan, --physical-network, "),
    ("vlan, mac_address, ", "--vlan, --mac, "),
    ("trusted, ", "--trusted, "),
    ("mac_address: ", "--mac: "),
    // Not a part of the name of a file.
    (" vgpu_type", " --vgpu-type"),
    ("spoof_check", "--spoof-check"),
    ("link_state", "--link-state"),
    ("min_tx_rate", "--min-rate"),
    ("max_tx_rate", "--max-rate"),
];

/// [`by_commands`] for a message about a request of `hotslot attach`, whose options include `--numa-policy`.
pub(crate) fn by_options_of_attach(message: &str) -> String {
    // The user names devices and a flavor, which the key before the message would only repeat.
    let message = ["addresses: ", "flavor: ", "vgpu_type: "]
        .iter()
        .find_map(|key| message.strip_prefix(key))
        .unwrap_or(message);
    let message = by_commands(message);
    KEYS_OF_ATTACH.iter().fold(message, |text, (key, option)| text.replace(key, option))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_fields_become_commands_and_options() {
        for (message, expected) in [
            ("busy", "busy"),
            (
                "server x not found; GET servers lists those there are",
                "server x not found; `hotslot server list` lists those there are",
            ),
            ("no id; GET os-pci lists them", "no id; `hotslot pci list` lists them"),
            ("of a1; GET os-pci/detail lists the devices", "of a1; `hotslot pci list -l` lists the devices"),
            (
                "a type's id, as GET os-hypervisors/{id}/pci_devices/{address} lists them",
                "a type's id, as `hotslot device show DEVICE -o json` lists them",
            ),
            (
                "for it: DELETE /accelerators/8e45, and attach it again",
                "for it: `hotslot accelerator detach 8e45`, and attach it again",
            ),
            (
                "made for it: DELETE /accelerator/v2/accelerator_requests/8e45 gives it back",
                "made for it: `openstack accelerator arq delete 8e45` gives it back",
            ),
            (
                "the card is disabled; POST accelerator/v2/devices/<its uuid>/enable",
                "the card is disabled; `openstack accelerator device enable <its uuid>`",
            ),
            ("1 of 2; DELETE it again", "1 of 2; run `hotslot accelerator detach` again"),
            (
                "has num 0; PUT a spec with a num of 1 to 256",
                "has num 0; run `hotslot accelerator spec` with a num of 1 to 256",
            ),
            ("dry_run: not known; attach it without dry_run", "not known; attach it without --dry-run"),
            ("gone; DELETE the accelerator.", "gone; run `hotslot accelerator detach`."),
            ("busy; GET it until it is free", "busy; run `hotslot accelerator show` until it is free"),
            ("ask with whole_group, or wait", "ask with --whole-group, or wait"),
            ("in use; add ?force=true: it goes", "in use; add --force: it goes"),
            ("shut it off, or ask all the same with force", "shut it off, or ask all the same with --force"),
            (
                "raise the limit: PUT os-quota-sets/p1",
                "raise the limit: `hotslot quota set p1 RESOURCE=NUMBER`",
            ),
            (
                "there until it is opened again (PUT os-hypervisors/node1/mode)",
                "there until it is opened again (`hotslot host thaw node1`)",
            ),
            (
                "add 7 port(s) to the definition of web1 (POST servers/8e45/pci_ports with count 7), and power-cycle",
                "add 7 port(s) to the definition of web1 (`hotslot server prepare 8e45 --ports 7`), and power-cycle",
            ),
            (
                "with PUT accelerators/8e45/acc_specs, or attach it with \"any_device\": true",
                "with `hotslot accelerator spec 8e45 SPEC`, or attach it with --any",
            ),
            (
                "has none; ask an administrator for it, or see with GET caller who you are",
                "has none; ask an administrator for it, or see with `hotslot whoami` who you are",
            ),
            (
                "does not show who calls; send a token (Authorization: Bearer …; `hotslot token create` makes one)",
                "does not show who calls; set HOTSLOT_TOKEN, or name --token-file (`hotslot token create` makes a token)",
            ),
            (r#"is shut off; omit "persistent" or set it to true"#, "is shut off; omit --live-only"),
            (
                "the last event is 4; repeat the request with since=0:",
                "the last event is 4; repeat the command with --since 0:",
            ),
            ("query key device: invalid id", "--device: invalid id"),
            (
                r#"bad body: the name must have 1 to 255 characters; send {"name": "IPSec Card"}"#,
                "the name must have 1 to 255 characters",
            ),
            ("POST nowhere/1, GET webhooks", "POST nowhere/1, GET webhooks"),
            ("GET ", "GET "),
            (
                r#"bad body: acc_specs: num is `-1`; send {"acc_specs": {"remote": 0, "num": 1, "device_type": "CRYPTO", "acc_capability": {}}}"#,
                r#"bad spec: num is `-1`; write a spec such as '{"device_type": "GPU", "num": 1}'"#,
            ),
        ] {
            assert_eq!(by_commands(message), expected);
        }
        let numa = "ask with another numa_policy";
        assert_eq!(by_commands(numa), numa, "an accelerator has its policy in its spec");
        for (message, expected) in [
            (numa, "ask with another --numa-policy"),
            ("addresses: write 0000:04:10.0", "write 0000:04:10.0"),
            ("pci_passthrough:alias: `nic:300` is not", "`nic:300` is not"),
            (
                "or attach without trusted, spoof_check, link_state",
                "or attach without --trusted, --spoof-check, --link-state",
            ),
            (
                "flavor: there is no flavor `x`; GET flavors lists them",
                "there is no flavor `x`; `hotslot flavor list` lists them",
            ),
            (
                "mac_address: it applies to one device, and 2 are requested; omit mac_address, or",
                "--mac: it applies to one device, and 2 are requested; omit --mac, or",
            ),
            (
                "(mac_address, vlan, physical_network, trusted, spoof_check, link_state, min_tx_rate and max_tx_rate)",
                "(--mac, --vlan, --physical-network, --trusted, --spoof-check, --link-state, --min-rate and --max-rate)",
            ),
            (
                "request one with vgpu_type; /sys/x/nvidia/current_vgpu_type: busy",
                "request one with --vgpu-type; /sys/x/nvidia/current_vgpu_type: busy",
            ),
            (
                "vgpu_type: alias `a` is of a type; leave vgpu_type out",
                "alias `a` is of a type; leave --vgpu-type out",
            ),
            (
                "vlan, mac_address, trusted, spoof_check, link_state, min_tx_rate and max_tx_rate are for",
                "--vlan, --mac, --trusted, --spoof-check, --link-state, --min-rate and --max-rate are for",
            ),
        ] {
            assert_eq!(by_options_of_attach(message), expected);
        }
    }
}
