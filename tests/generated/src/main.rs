//! Attaches, lists and detaches a device with the generated client: `hotslot-generated URL SERVER ALIAS`.

use std::error::Error;
use std::time::Duration;

use client::Client;
use client::types::{CreatedPciAttachments, NewPciAttachment, NewPciAttachments};

#[allow(warnings, clippy::all, reason = "the file is generated")]
mod client {
    include!(concat!(env!("OUT_DIR"), "/client.rs"));
}

/// How often the attachments are listed until the device is gone.
const TRIES: u32 = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [url, server, alias] = arguments.as_slice() else { return Err("give URL, SERVER and ALIAS".into()) };
    let client = Client::new(url);
    let alias = Some(alias.parse()?);
    let pci_attachment = NewPciAttachment { pci_passthrough_alias: alias, ..NewPciAttachment::default() };
    let body = NewPciAttachments { dry_run: None, pci_attachment };
    let made = client.attachments_create().server_id(server).body(body).send().await?.into_inner();
    let CreatedPciAttachments::Variant0 { pci_devices: devices, .. } = made else {
        return Err("a dry run".into());
    };
    let [device] = devices.as_slice() else { return Err("not one device".into()) };
    let listed = async || -> Result<Vec<_>, Box<dyn Error>> {
        let list = client.attachments_list().server_id(server).send().await?.into_inner();
        Ok(list.pci_attachment.into_iter().map(|attachment| attachment.attachment_id).collect())
    };
    assert_eq!(listed().await?, [device.attachment_id]);

    let id = device.attachment_id.to_string();
    client.attachments_delete().server_id(server).attachment_id(&id).send().await?;
    for _ in 0..TRIES {
        if listed().await?.is_empty() {
            let gone = client.attachments_show().server_id(server).attachment_id(&id).send().await;
            assert_eq!(gone.expect_err("it is gone").status().map(|status| status.as_u16()), Some(404));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the device is still attached".into())
}
