//! Schemas of values that come from the crates below, which do not know OpenAPI. A field names one of them with
//! `#[schema(value_type = …)]`.

use std::marker::PhantomData;

use hotslot_model::accelerator::Status;
use hotslot_model::assignment::{InnerSource, Kind, State};
use hotslot_model::cyborg::ArqState;
use hotslot_model::device::{DevType, DeviceStatus};
use hotslot_model::event::EventKind;
use serde_json::json;
use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Defines the schema of a value that is a string.
macro_rules! text {
    ($Name:ident, $description:literal, $example:literal $(, pattern $pattern:literal)? $(, format $format:literal)?) => {
        #[doc = $description]
        pub(super) struct $Name(PhantomData<()>);

        impl PartialSchema for $Name {
            fn schema() -> RefOr<Schema> {
                let builder = ObjectBuilder::new().schema_type(Type::String).description(Some($description));
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
words!(DriftKind, Kind, "The kind of a disagreement between the records, a domain and a host.");
words!(EventKindName, EventKind, "The kind of an event: the kind of record, and what changed.");
words!(AcceleratorStatus, Status, "What an accelerator is doing, by the devices that it holds.");
words!(AcceleratorRequestState, ArqState, "The state of an accelerator request, as in Cyborg.");
