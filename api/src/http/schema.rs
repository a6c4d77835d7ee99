//! Schemas of values that come from the crates below, which do not know OpenAPI. A field names one of them with
//! `#[schema(value_type = …)]`.

use std::marker::PhantomData;

use hotslot_driver::device_type::DeviceType;
use hotslot_driver::text::is_unsafe;
use hotslot_model::accelerator::Status;
use hotslot_model::assignment::{InnerSource, Kind, State};
use hotslot_model::cyborg::ArqState;
use hotslot_model::device::{DevType, DeviceStatus};
use hotslot_model::event::EventKind;
use hotslot_model::host_mode::HostMode;
use hotslot_model::rules::RuleKind;
use serde_json::json;
use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Defines the schema of a value that is a string.
macro_rules! text {
    ($Name:ident, $description:literal, $example:literal $(, length $least:literal to $most:literal)?
     $(, pattern $pattern:expr)? $(, format $format:literal)?) => {
        #[doc = $description]
        pub(super) struct $Name(PhantomData<()>);

        impl PartialSchema for $Name {
            fn schema() -> RefOr<Schema> {
                let builder = ObjectBuilder::new().schema_type(Type::String).description(Some($description));
                $(let builder = builder.min_length(Some($least)).max_length(Some($most));)?
                $(let builder = builder.pattern(Some($pattern));)?
                $(let builder = builder.format(Some(SchemaFormat::Custom($format.to_owned())));)?
                builder.examples([json!($example)]).into()
            }
        }

        impl ToSchema for $Name {}
    };
}

text!(
    PciAddress,
    "The address of a PCI function: domain, bus, slot and function in hexadecimal digits, in lower case.",
    "0000:3b:00.1",
    pattern "^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\\.[0-7]$"
);
text!(
    PciId,
    "A PCI vendor or product id: four hexadecimal digits in lower case, without a prefix.",
    "8086",
    pattern "^[0-9a-f]{4}$"
);
text!(
    PciClassCode,
    "The class code of a PCI function (class, subclass and programming interface) in hexadecimal digits.",
    "0x020000",
    pattern "^0x[0-9a-f]{6}$"
);
text!(Time, "A time in UTC, as RFC 3339 writes it.", "2026-11-28T21:40:00Z", format "date-time");
text!(
    CyborgTime,
    "A time in UTC as Cyborg writes it: with microseconds and an offset.",
    "2026-11-28T21:40:00.000000+00:00",
    format "date-time"
);

text!(
    PciAddressText,
    "The address of a PCI function in a request, in upper or lower case; without a domain, domain 0 is meant.",
    "3b:00.1",
    pattern "^(0{0,4}[0-9A-Fa-f]{1,4}:)?0{0,6}[0-9A-Fa-f]{1,2}:0{0,6}[01]?[0-9A-Fa-f]\\.0{0,7}[0-7]$"
);
text!(
    PciIdText,
    "A PCI vendor or product id in a request: one to four hexadecimal digits.",
    "8086",
    pattern "^(0x)?[0-9A-Fa-f]{1,4}$"
);
text!(
    ProjectId,
    "The id of a project: 1 to 255 characters, all of them visible.",
    "0c2f5d3a6e7b4a8f9d1e2c3b4a5f6e7d",
    length 1 to 255,
    pattern all_of(&visible())
);
text!(
    AcceleratorName,
    "The name of an accelerator: 1 to 255 characters, all of them visible, and not only blanks.",
    "IPSec Card",
    length 1 to 255,
    pattern all_but_blank(&visible())
);
text!(
    AttributeKey,
    "The key of an attribute: 1 to 255 characters, all of them visible.",
    "rack",
    length 1 to 255,
    pattern all_of(&visible())
);
text!(VisibleText, "At most 255 characters, all of them visible.", "r1", length 0 to 255, pattern all_of(&visible()));
text!(
    WaitTime,
    "A time above 0 and at most a day: `30s`, `500ms`, `2m` or `1h`. A number without a unit is in seconds.",
    "30s",
    pattern WAIT_TIME
);
text!(Flag, "`1` or `true`, `0` or `false`.", "1", pattern "^(1|true|0|false)$");
text!(
    AliasRequests,
    "Names of aliases with the number of devices of each, such as `a1:2,b1:1`; at most 256 devices.",
    "vf:1",
    pattern "^[^,:]+:0*[1-9][0-9]{0,2}(,[^,:]+:0*[1-9][0-9]{0,2})*$"
);
text!(
    MacAddress,
    "A MAC address of one interface: six pairs of hexadecimal digits. The second digit is even.",
    "52:54:00:12:34:56",
    pattern "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$"
);
text!(
    UuidList,
    "One or more UUIDs, separated by commas.",
    "3f0c7c2e-6f0e-4c0b-9f3a-0d3c7f0a4a55",
    pattern "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(,[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})*$"
);

/// The pattern of [`WaitTime`]: up to 86,400 seconds, 86,400,000 milliseconds, 1440 minutes or 24 hours.
const WAIT_TIME: &str = "^0*(([1-9][0-9]{0,3}|[1-7][0-9]{4}|8[0-5][0-9]{3}|86[0-3][0-9]{2}|86400)s?\
                         |([1-9][0-9]{0,6}|[1-7][0-9]{7}|8[0-5][0-9]{6}|86[0-3][0-9]{5}|86400000)ms\
                         |([1-9][0-9]{0,2}|1[0-3][0-9]{2}|14[0-3][0-9]|1440)m\
                         |([1-9]|1[0-9]|2[0-4])h)$";

/// Returns the ranges of a class of a regular expression that has the characters which [`is_unsafe`] refuses, up to
/// U+FFFF. The few above are refused without being in the pattern, because tools write them in different ways.
fn visible() -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for code in (0..=0xffff).filter(|code| char::from_u32(*code).is_some_and(is_unsafe)) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == code => *last = code,
            _ => ranges.push((code, code)),
        }
    }
    let range = |(first, last): (u32, u32)| {
        if first == last { format!("\\u{first:04x}") } else { format!("\\u{first:04x}-\\u{last:04x}") }
    };
    ranges.into_iter().map(range).collect()
}

/// Returns the pattern of a text that has none of these characters.
fn all_of(refused: &str) -> String {
    format!("^[^{refused}]*$")
}

/// Returns the pattern of a text that has none of these characters, and another one than blanks.
fn all_but_blank(refused: &str) -> String {
    format!("^[^{refused}]*[^\\s{refused}][^{refused}]*$")
}

/// Defines the schema of an enum whose variants have fixed words.
macro_rules! words {
    ($Name:ident, $Of:ty, $description:literal) => {
        #[doc = $description]
        pub(super) struct $Name(PhantomData<()>);

        impl PartialSchema for $Name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($description))
                    .enum_values(Some(<$Of>::ALL.iter().map(|word| word.as_str())))
                    .into()
            }
        }

        impl ToSchema for $Name {}
    };
}

words!(
    PciDeviceType,
    DevType,
    "Nova's type of a device: `type-PCI` is neither PF nor VF, `type-PF` a physical function, `type-VF` a virtual \
     function, and `vdpa` a virtual function with a vDPA device on it."
);
words!(
    PciDeviceStatus,
    DeviceStatus,
    "Nova's status of a device. `claimed` is reserved for an assignment, `allocated` in use by one; `unclaimable` and \
     `unavailable` mean that its PF or one of its VFs is claimed or allocated."
);
words!(
    AssignmentState,
    State,
    "The state of an assignment. `detached` and `failed` are final; a device that is `detaching` may still be in the guest."
);
words!(
    InnerAddressSource,
    InnerSource,
    "Where an address in the guest comes from: `verified` when the guest or QEMU reported it, `computed` when it follows from \
     the bus numbers that firmware gives."
);
words!(
    HypervisorModeName,
    HostMode,
    "What may be changed on a host: everything (`open`), everything but new attachments (`draining`), nothing until an \
     administrator thaws it (`frozen`), or nothing as the configuration says (`read-only`)."
);
words!(DriftKind, Kind, "The kind of a disagreement between the records, a domain and a host.");
words!(EventKindName, EventKind, "The kind of an event: the kind of record, and what changed.");
words!(AcceleratorStatus, Status, "What an accelerator is doing, by the devices that it holds.");
words!(AcceleratorRequestState, ArqState, "The state of an accelerator request, as in Cyborg.");
words!(
    RuleKindName,
    RuleKind,
    "A kind of rules: `whitelist` for entries of `device_spec`, `alias`, or `extra_info`."
);

/// Defines the schema of a word of a request.
macro_rules! one_of {
    ($Name:ident, $description:literal, $words:expr) => {
        #[doc = $description]
        pub(super) struct $Name(PhantomData<()>);

        impl PartialSchema for $Name {
            fn schema() -> RefOr<Schema> {
                let builder = ObjectBuilder::new().schema_type(Type::String).description(Some($description));
                builder.enum_values(Some($words)).into()
            }
        }

        impl ToSchema for $Name {}
    };
}

one_of!(
    NumaPolicyName,
    "Which NUMA node a device must be on, as in Nova.",
    ["required", "socket", "preferred", "legacy"]
);
one_of!(VfLinkState, "The link that the guest of a VF sees.", ["auto", "enable", "disable"]);
one_of!(Resolved, "Only accelerator requests that are not being bound any more.", ["resolved"]);
one_of!(SortDirection, "Ascending or descending.", ["asc", "desc"]);
/// The keys by which the list of accelerators can be sorted.
pub(super) const SORT_KEYS: [&str; 18] = [
    "uuid",
    "name",
    "description",
    "status",
    "status_reason",
    "instance_uuid",
    "host",
    "address",
    "inner_address",
    "driver",
    "device_type",
    "acc_type",
    "acc_capability",
    "vendor_id",
    "product_id",
    "remotable",
    "created_at",
    "updated_at",
];

one_of!(SortKey, "A key of an accelerator.", SORT_KEYS);
one_of!(
    AcceleratorType,
    "The type of a device, in upper or lower case; `UNKNOWN` for any.",
    DeviceType::ALL.iter().map(|kind| kind.as_str()).chain(["UNKNOWN"])
);
one_of!(PatchOperation, "`add` to bind an accelerator request, or `remove` to unbind it.", ["add", "remove"]);
one_of!(
    PatchPath,
    "The key of an accelerator request. `/project_id` needs microversion 2.1.",
    ["/hostname", "/device_rp_uuid", "/instance_uuid", "/project_id"]
);

/// Nova's names of the statuses of servers. Those that no guest has here select none.
pub(super) const SERVER_STATUSES: [&str; 20] = [
    "ACTIVE",
    "BUILD",
    "DELETED",
    "ERROR",
    "HARD_REBOOT",
    "MIGRATING",
    "PASSWORD",
    "PAUSED",
    "REBOOT",
    "REBUILD",
    "RESCUE",
    "RESIZE",
    "REVERT_RESIZE",
    "SHELVED",
    "SHELVED_OFFLOADED",
    "SHUTOFF",
    "SOFT_DELETED",
    "SUSPENDED",
    "UNKNOWN",
    "VERIFY_RESIZE",
];

/// A status of a server, as a filter.
pub(super) struct ServerStatusName(PhantomData<()>);

impl PartialSchema for ServerStatusName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(SERVER_STATUSES)).into()
    }
}

impl ToSchema for ServerStatusName {}

/// True, as the only value of a key.
pub(super) struct OnlyTrue(PhantomData<()>);

impl PartialSchema for OnlyTrue {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true])).into()
    }
}

impl ToSchema for OnlyTrue {}

/// The number of a NUMA node of a host.
pub(super) struct NumaNode(PhantomData<()>);

impl PartialSchema for NumaNode {
    fn schema() -> RefOr<Schema> {
        let builder =
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
        builder.description(Some("The number of a NUMA node of a host.")).into()
    }
}

impl ToSchema for NumaNode {}

/// Null, as the only value of a key.
pub(super) struct OnlyNull(PhantomData<()>);

impl PartialSchema for OnlyNull {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Null).description(Some("Always null.")).into()
    }
}

impl ToSchema for OnlyNull {}

/// A value of a request that has no effect: anything but a list.
pub(super) struct Ignored(PhantomData<()>);

impl PartialSchema for Ignored {
    fn schema() -> RefOr<Schema> {
        let kinds = [Type::Object, Type::String, Type::Number, Type::Boolean, Type::Null];
        let builder = ObjectBuilder::new().schema_type(SchemaType::from_iter(kinds));
        builder.description(Some("A value that has no effect: anything but a list.")).into()
    }
}

impl ToSchema for Ignored {}
