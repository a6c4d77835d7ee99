//! The NUMA affinity between a guest and its devices (Nova's `numa_policy`).

use std::collections::{BTreeMap, BTreeSet};

use crate::string_enum;

string_enum! {
    /// Which NUMA nodes a device may be on, relative to the host NUMA nodes that the guest's NUMA cells are placed on.
    NumaPolicy {
        /// On one of the guest's nodes.
        Required = "required",
        /// On one of the guest's nodes if possible, otherwise on an unknown node, otherwise on any node.
        Preferred = "preferred",
        /// On one of the guest's nodes, or on an unknown node.
        Legacy = "legacy",
        /// On one of the guest's nodes, or on another node of the same CPU socket.
        Socket = "socket",
    }
}

/// Nova's default for an alias without `numa_policy`.
impl Default for NumaPolicy {
    fn default() -> Self {
        Self::Legacy
    }
}

impl NumaPolicy {
    /// Returns the rank of a device on `device_node` for a guest whose cells are on `guest_nodes`, from 0 (best) to 2
    /// (worst). Every device has rank 0 for a guest without NUMA cells (empty `guest_nodes`). `sockets` has the CPU
    /// socket of each node of the host, or is `None` when the host does not report sockets.
    ///
    /// # Errors
    /// Returns the reason when the policy excludes the device.
    pub fn rank(
        self,
        device_node: Option<u32>,
        guest_nodes: &BTreeSet<u32>,
        sockets: Option<&BTreeMap<u32, u32>>,
    ) -> Result<u8, String> {
        if guest_nodes.is_empty() {
            return Ok(0);
        }
        let near = device_node.is_some_and(|node| guest_nodes.contains(&node));
        let out = |at: String| {
            let nodes = join(guest_nodes);
            Err(format!("{at}, the guest's cells are on {nodes}, and numa_policy is `{self}`"))
        };
        match (self, device_node) {
            // A node is on the same socket as itself, even when the host does not report the socket.
            (Self::Required | Self::Legacy | Self::Preferred | Self::Socket, _) if near => Ok(0),
            (Self::Legacy | Self::Preferred, None) => Ok(1),
            (Self::Preferred, Some(_)) => Ok(2),
            (Self::Required | Self::Socket, None) => out("its NUMA node is unknown".to_owned()),
            (Self::Required | Self::Legacy, Some(node)) => out(format!("it is on NUMA node {node}")),
            (Self::Socket, Some(node)) => {
                let Some(sockets) = sockets else {
                    return out(format!("it is on NUMA node {node}"))
                        .map_err(|why| why + "; the host does not report the sockets of its NUMA nodes");
                };
                match sockets.get(&node) {
                    None => out(format!("the host does not report the socket of its NUMA node {node}")),
                    socket if guest_nodes.iter().any(|guest| sockets.get(guest) == socket) => Ok(1),
                    Some(socket) => out(format!("it is on NUMA node {node} of socket {socket}")),
                }
            }
        }
    }
}

fn join(nodes: &BTreeSet<u32>) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn policies_rank_as_in_nova() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/numa.json")).unwrap();
        for case in cases {
            let policy: NumaPolicy = case["policy"].as_str().unwrap().parse().unwrap();
            let guest = serde_json::from_value(case["guest"].clone()).unwrap();
            let sockets: Option<BTreeMap<u32, u32>> =
                serde_json::from_value(case["sockets"].clone()).unwrap();
            let device = serde_json::from_value(case["device"].clone()).unwrap();
            match (policy.rank(device, &guest, sockets.as_ref()), case["refused"].as_str()) {
                (Ok(rank), None) => assert_eq!(json(rank), case["rank"], "{case}"),
                (Err(reason), Some(says)) => assert!(reason.contains(says), "{case}: {reason}"),
                (outcome, _) => panic!("{case}: {outcome:?}"),
            }
        }
    }

    fn json(rank: u8) -> Value {
        rank.into()
    }

    #[test]
    fn the_default_policy_is_legacy() {
        assert_eq!(NumaPolicy::default(), NumaPolicy::Legacy);
    }
}
