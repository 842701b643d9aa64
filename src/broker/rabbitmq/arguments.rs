//! The arguments of declarations and consumers, as AMQP 0-9-1 carries them. Pure.

use amqprs::{FieldTable, FieldValue};

/// Makes a table of the entries. Names must be short and unique.
pub(super) fn table<const N: usize>(entries: [(&str, FieldValue); N]) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in entries {
        table.insert(name.try_into().expect("a short name"), value);
    }
    table
}
