//! Takes the body of an update apart in one pass, since each update is.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::update::{Text, envelope::fields::Fields};

/// A body has sections if one of these is in its `data`.
const SECTIONS: [&str; 5] = ["dialog", "member", "message", "typing", "context"];

/// An update's body, taken apart as far as it is changed.
pub(super) struct Body<'a> {
    /// Without `data`.
    pub(super) fields: Fields<'a>,
    pub(super) data: Option<Data<'a>>,
}

/// The body's `data`. A section that is null counts as absent.
#[derive(Default)]
pub(super) struct Data<'a> {
    pub(super) dialog: Option<&'a RawValue>,
    pub(super) member: Option<&'a RawValue>,
    pub(super) message: Option<Fields<'a>>,
    pub(super) typing: Option<Fields<'a>>,
    pub(super) context: Fields<'a>,
    pub(super) others: Fields<'a>,
    /// Whether `data` has one of [`SECTIONS`].
    has_sections: bool,
}

impl<'a> Data<'a> {
    /// The same, unless it has no sections: `data` of the first generation is a message or a
    /// dialog.
    pub(super) fn unless_flat(self, event_type: &str, whole: &'a RawValue) -> Self {
        if self.has_sections {
            self
        } else if event_type.starts_with("message.") {
            Self {
                message: Some(self.others),
                ..Self::default()
            }
        } else if event_type.starts_with("dialog.") {
            Self {
                dialog: Some(whole),
                ..Self::default()
            }
        } else {
            self
        }
    }

    pub(super) fn dialog_id(&self) -> Option<&'a RawValue> {
        let of_dialog = || Fields::parse(self.dialog?)?.given("dialogId");
        let of_message = || self.message.as_ref()?.given("dialogId");
        let own = self.context.given("dialogId");
        own.or_else(of_dialog).or_else(of_message)
    }
}

impl<'de> Deserialize<'de> for Body<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Body<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an update")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut fields, mut data) = (Fields::default(), None);
                while let Some(Text(name)) = map.next_key()? {
                    match &*name {
                        "data" => data = map.next_value()?,
                        _ => fields.push(name, map.next_value()?),
                    }
                }
                Ok(Body { fields, data })
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

impl<'de> Deserialize<'de> for Data<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Data<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sections")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut data = Data::default();
                while let Some(Text(name)) = map.next_key()? {
                    data.has_sections |= SECTIONS.contains(&&*name);
                    match &*name {
                        "dialog" => data.dialog = map.next_value()?,
                        "member" => data.member = map.next_value()?,
                        "message" => data.message = map.next_value()?,
                        "typing" => data.typing = map.next_value()?,
                        "context" => {
                            let context: Option<_> = map.next_value()?;
                            data.context = context.unwrap_or_default();
                        }
                        _ => data.others.push(name, map.next_value()?),
                    }
                }
                Ok(data)
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}
