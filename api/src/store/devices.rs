//! The table `pci_devices`: the devices that may be given away, and whom they are promised to.

use std::collections::BTreeMap;

use hotslot_driver::pci::{PciAddress, PciId};
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Columns, Millis, Store, bad_column, now, words};
use crate::error::Error;
use crate::id::{DeviceId, HypervisorId, RequestId, ServerId};

words! {
    /// Nova's device types.
    DevType {
        /// Neither PF nor VF.
        Pci = "type-PCI",
        /// A physical function, with or without VFs enabled.
        Pf = "type-PF",
        /// A virtual function.
        Vf = "type-VF",
        /// A virtual function with a vDPA device on it.
        Vdpa = "vdpa",
    }
}

words! {
    /// Nova's device states.
    DeviceStatus {
        /// Free.
        Available = "available",
        /// Promised to a server.
        Claimed = "claimed",
        /// In use by a server.
        Allocated = "allocated",
        /// Gone from the host.
        Removed = "removed",
        /// Soft-deleted.
        Deleted = "deleted",
        /// A relative (PF or VF) is claimed.
        Unclaimable = "unclaimable",
        /// A relative (PF or VF) is allocated.
        Unavailable = "unavailable",
    }
}

/// A row of `pci_devices` that is not deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The row's id.
    pub id: DeviceId,
    /// The row's UUID.
    pub uuid: Uuid,
    /// Which host has it.
    pub hypervisor: HypervisorId,
    /// What the host says of it.
    pub facts: DeviceFacts,
    /// Whether it is free.
    pub status: DeviceStatus,
    /// The request that holds it.
    pub request: Option<RequestId>,
    /// The server that holds it.
    pub server: Option<ServerId>,
    /// When it was first seen.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Option<Millis>,
}

/// What the host says of a device: all that a scan may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Where the host has it.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// Its type to Nova.
    pub dev_type: DevType,
    /// The NUMA node, where it is known.
    pub numa_node: Option<u32>,
    /// The PF of a VF.
    pub parent_addr: Option<PciAddress>,
    /// Everything else, a map of strings to strings.
    pub extra_info: BTreeMap<String, String>,
}

impl DeviceFacts {
    /// libvirt's name of it, `pci_0000_04_10_0`.
    pub fn dev_id(&self) -> String {
        self.address.node_name()
    }

    /// Nova's label, `label_8086_1520`.
    pub fn label(&self) -> String {
        format!("label_{}_{}", self.vendor_id, self.product_id)
    }
}

/// What one scan changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanOutcome {
    /// Devices seen for the first time.
    pub added: usize,
    /// Devices whose facts changed.
    pub changed: usize,
    /// Devices that are gone.
    pub removed: usize,
    /// Devices that are gone while a server has them: their rows stay with their owners.
    pub gone_in_use: usize,
}

const TABLE: &str = "pci_devices";

fn device(row: &SqliteRow) -> Result<Device, Error> {
    use sqlx::Row as _;
    let id: i64 = row.try_get("id")?;
    let columns = Columns { table: TABLE, id: id.to_string(), row };
    let extra_info: String = columns.get("extra_info")?;
    Ok(Device {
        id: DeviceId(id),
        uuid: columns.parse("uuid")?,
        hypervisor: HypervisorId(columns.get("compute_node_id")?),
        facts: DeviceFacts {
            address: columns.parse("address")?,
            vendor_id: columns.parse("vendor_id")?,
            product_id: columns.parse("product_id")?,
            dev_type: columns.parse("dev_type")?,
            numa_node: columns
                .get::<Option<i64>>("numa_node")?
                .map(u32::try_from)
                .transpose()
                .map_err(|error| bad_column(TABLE, id, "numa_node")(&error))?,
            parent_addr: columns.parse_opt("parent_addr")?,
            extra_info: serde_json::from_str(&extra_info)
                .map_err(|error| bad_column(TABLE, id, "extra_info")(&error))?,
        },
        status: columns.parse("status")?,
        request: columns.parse_opt("request_id")?,
        server: columns.parse_opt("instance_uuid")?,
        created_at: columns.get("created_at")?,
        updated_at: columns.get("updated_at")?,
    })
}

impl Store {
    /// Every device, in order of host and address.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn devices(&self) -> Result<Vec<Device>, Error> {
        let rows =
            sqlx::query("SELECT * FROM pci_devices WHERE deleted = 0 ORDER BY compute_node_id, address, id")
                .fetch_all(&self.read)
                .await?;
        rows.iter().map(device).collect()
    }

    /// One device.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn device(&self, id: DeviceId) -> Result<Option<Device>, Error> {
        let row = sqlx::query("SELECT * FROM pci_devices WHERE id = $1 AND deleted = 0")
            .bind(id.0)
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(device).transpose()
    }

    /// Brings the table in line with what a host has now. Only what differs is written.
    ///
    /// # Errors
    /// The database's; then nothing was changed.
    pub async fn scan(&self, hypervisor: HypervisorId, seen: &[DeviceFacts]) -> Result<ScanOutcome, Error> {
        let mut outcome = ScanOutcome::default();
        let mut tx = self.write.begin().await?;
        let rows = sqlx::query("SELECT * FROM pci_devices WHERE compute_node_id = $1 AND deleted = 0")
            .bind(hypervisor.0)
            .fetch_all(&mut *tx)
            .await?;
        let mut known = BTreeMap::new();
        for row in &rows {
            let device = device(row)?;
            known.insert(device.facts.address, device);
        }
        for facts in seen {
            let extra_info = || {
                serde_json::to_string(&facts.extra_info)
                    .map_err(|error| Error::Internal(format!("extra_info of {}: {error}", facts.address)))
            };
            match known.remove(&facts.address) {
                Some(device) if device.facts == *facts => {}
                Some(device) => {
                    sqlx::query(
                        "UPDATE pci_devices SET vendor_id = $2, product_id = $3, dev_type = $4, label = $5,
                             numa_node = $6, parent_addr = $7, extra_info = $8, updated_at = $9
                         WHERE id = $1",
                    )
                    .bind(device.id.0)
                    .bind(facts.vendor_id.to_string())
                    .bind(facts.product_id.to_string())
                    .bind(facts.dev_type.as_str())
                    .bind(facts.label())
                    .bind(facts.numa_node.map(i64::from))
                    .bind(facts.parent_addr.map(|address| address.to_string()))
                    .bind(extra_info()?)
                    .bind(now())
                    .execute(&mut *tx)
                    .await?;
                    outcome.changed += 1;
                }
                None => {
                    sqlx::query(
                        "INSERT INTO pci_devices (id, uuid, compute_node_id, address, vendor_id, product_id,
                             dev_type, dev_id, label, status, extra_info, numa_node, parent_addr, created_at,
                             deleted)
                         SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8, 'available', $9, $10,
                             $11, $12, 0
                         FROM pci_devices",
                    )
                    .bind(Uuid::new_v4().hyphenated().to_string())
                    .bind(hypervisor.0)
                    .bind(facts.address.to_string())
                    .bind(facts.vendor_id.to_string())
                    .bind(facts.product_id.to_string())
                    .bind(facts.dev_type.as_str())
                    .bind(facts.dev_id())
                    .bind(facts.label())
                    .bind(extra_info()?)
                    .bind(facts.numa_node.map(i64::from))
                    .bind(facts.parent_addr.map(|address| address.to_string()))
                    .bind(now())
                    .execute(&mut *tx)
                    .await?;
                    outcome.added += 1;
                }
            }
        }
        for device in known.values() {
            let gone = sqlx::query(
                "UPDATE pci_devices SET status = 'deleted', deleted = id, deleted_at = $2
                 WHERE id = $1 AND instance_uuid IS NULL",
            )
            .bind(device.id.0)
            .bind(now())
            .execute(&mut *tx)
            .await?;
            if gone.rows_affected() == 1 {
                outcome.removed += 1;
            } else {
                outcome.gone_in_use += 1;
            }
        }
        if outcome.added + outcome.changed + outcome.removed > 0 {
            tx.commit().await?;
        }
        Ok(outcome)
    }
}
