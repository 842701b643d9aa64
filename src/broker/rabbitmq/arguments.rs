//! The arguments of declarations and consumers, as AMQP 0-9-1 carries them. Pure.

use amqprs::{FieldTable, FieldValue};

/// A table of these entries, whose names are short and differ.
pub(super) fn table<const N: usize>(entries: [(&str, FieldValue); N]) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in entries {
        table.insert(name.try_into().expect("a short name"), value);
    }
    table
}
