//! Columns that several tables share.

use std::collections::HashMap;

use serde_json::Value;

use crate::table::{Column, column, id, message};
use crate::value::at;

/// Returns the name of a server, or its UUID when the name is not known.
pub(crate) fn called(names: &HashMap<String, String>, id: &str) -> String {
    names.get(id).map_or(id, String::as_str).to_owned()
}

/// Returns the server that has a device, or else its `owner`, such as a domain to which someone else attached it.
pub(crate) fn holder(names: &HashMap<String, String>, device: &Value) -> String {
    match at(device, "/instance_uuid") {
        server if server != "-" => called(names, &server),
        _ => at(device, "/owner"),
    }
}

/// `8086:10ca`, as `lspci -n` prints it.
pub(crate) fn ids(device: &Value) -> String {
    format!("{}:{}", at(device, "/vendor_id"), at(device, "/product_id"))
}

/// The columns of a table of attachments, without the server.
pub(crate) fn attachments() -> Vec<Column<'static>> {
    vec![
        id("ID", "/attachment_id"),
        column("ALIAS", "/alias"),
        Column::new("VENDOR:PRODUCT", ids).wide(),
        column("ADDRESS", "/address"),
        Column::new("INNER ADDRESS", inner_address).wrapped(),
        column("STATUS", "/status"),
        message("REASON", "/status_reason"),
    ]
}

/// The address at which the guest sees the device, with its source: computed or verified.
pub(crate) fn inner_address(attachment: &Value) -> String {
    match (at(attachment, "/inner_address"), at(attachment, "/inner_address_source")) {
        (address, source) if address == "-" || source == "-" => address,
        (address, source) => format!("{address} ({source})"),
    }
}
