//! The service: intents, records, outcomes and wire formats.
