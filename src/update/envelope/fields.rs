//! An object's fields, taken apart without a look into their values.

use std::{borrow::Cow, collections::HashSet, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use crate::update::Text;

/// As many fields as most objects in Chat3's bodies have: one allocation is enough.
const USUAL_FIELDS: usize = 12;

/// An object's fields in their order, each value as it was published.
#[derive(Default)]
pub(super) struct Fields<'a>(pub(super) Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'a> Fields<'a> {
    /// `None` if the value is not an object.
    pub(super) fn parse(value: &'a RawValue) -> Option<Self> {
        serde_json::from_str(value.get()).ok()
    }

    /// The value that a browser would take: the last one, if the field is repeated.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let is_it = |(field, _): &&(Cow<'a, str>, _)| field == name;
        match self.0.iter().rfind(is_it)?.1 {
            Cow::Borrowed(value) => Some(value),
            Cow::Owned(_) => None,
        }
    }

    /// The same, unless the value is `null` or an empty string.
    pub(super) fn given(&self, name: &str) -> Option<&'a RawValue> {
        let is_nothing = |value: &RawValue| matches!(value.get(), "null" | "\"\"");
        self.get(name).filter(|value| !is_nothing(value))
    }

    pub(super) fn push(&mut self, name: Cow<'a, str>, value: &'a RawValue) {
        if self.0.is_empty() {
            self.0.reserve(USUAL_FIELDS);
        }
        self.0.push((name, Cow::Borrowed(value)));
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    /// Adds those of `others` whose names are missing here.
    pub(super) fn add_missing(&mut self, others: &Self) {
        let own: HashSet<&str> = self.0.iter().map(|(field, _)| &**field).collect();
        let missing = |(field, _): &&(Cow<'a, str>, _)| !own.contains(&**field);
        let missing: Vec<_> = others.0.iter().filter(missing).cloned().collect();
        self.0.extend(missing);
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some((Text(name), value)) = map.next_entry::<_, &RawValue>()? {
                    fields.push(name, value);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}
